"""The client of the guard: one helper process, started when first needed and again whenever it is lost.

Usable from any thread; from asyncio through `asyncio.to_thread`. Jobs run one after another.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from qlocal.errors import (
    EngineError,
    FormatError,
    GrammarError,
    QLocalError,
    TemplateError,
    TemplateLimitError,
    TokenizerError,
)
from qlocal.guard import frames
from qlocal.guard.process import Gone, GuardProcess

WAIT_PER_CPU = 6.0
"""How many times its processor time a job may take by the clock: the machine may be busy with other things."""
START_CPU_S = 4.0
MAX_TEXT_BYTES = 8 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedVocabulary:
    """What the guard says about a vocabulary it has loaded. token_bytes: by id. added: (id, text, is_special)."""

    key: str
    token_bytes: list[bytes]
    added: list[tuple[int, str, bool]]
    drops_first_blank: bool
    prefix_ids: list[int]
    load_frame: bytes = field(repr=False)
    """The request that loads it, for the next helper."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_bytes)


class Guard:
    """Runs templates and vocabularies of strangers in a helper process with limits.

    Raises TemplateError or TokenizerError for what a template or vocabulary does wrong, EngineError when the
    helper cannot be started. `with Guard() as guard:` ends the helper at the end.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: GuardProcess | None = None
        self._vocabularies: WeakValueDictionary[str, LoadedVocabulary] = WeakValueDictionary()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the helper; the next job would start a new one."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    @property
    def pid(self) -> int | None:
        """The helper's process id while it runs."""
        return self._process.pid if self._process is not None else None

    def load_vocabulary(self, kind: str, data: Mapping[str, Any]) -> LoadedVocabulary:
        """Load a vocabulary. kind: `tokenizer_json`, `sentencepiece` or `gguf`; data: its bytes or lists.

        While the result lives, every new helper loads the vocabulary again by itself.
        """
        key = hashlib.sha256(frames.pack([kind, dict(data)])).hexdigest()
        frame = frames.pack({"job": "load", "key": key, "kind": kind, "data": dict(data)})
        if len(frame) > frames.MAX_REQUEST_BYTES:
            raise TokenizerError(f"the vocabulary has {len(frame)} bytes, the limit is {frames.MAX_REQUEST_BYTES}")
        with self._lock:
            known = self._vocabularies.get(key)
            if known is not None:
                return known
            loaded = _loaded(key, frame, self._send(frame, frames.LOAD_CPU_S, "the vocabulary", TokenizerError))
            self._vocabularies[key] = loaded
            return loaded

    def encode(self, key: str, text: str, *, with_control: bool = False) -> list[int]:
        """Return the ids of `text`; control strings in it count only `with_control`."""
        _check_size(text)
        job = {"job": "encode", "key": key, "text": text, "with_control": with_control}
        return _ids(self._run(job, "encoding the text", TokenizerError))

    def encode_answer(self, key: str, text: str) -> list[int]:
        """Return the ids of an answer as it follows a prompt; control tokens in it stay text."""
        _check_size(text)
        return _ids(
            self._run({"job": "encode_answer", "key": key, "text": text}, "encoding the answer", TokenizerError)
        )

    def encode_chat(
        self, key: str, template: str, conversation: Mapping[str, Any], constants: Mapping[str, Any]
    ) -> list[int]:
        """Return the ids of a conversation. conversation: messages, tools, ... (foreign); constants: bos_token, ..."""
        job = {
            "job": "encode_chat",
            "key": key,
            "template": template,
            "conversation": dict(conversation),
            "constants": dict(constants),
        }
        return _ids(self._run(job, "the chat template", TemplateError))

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """Return the text that the template makes of the variables."""
        job = {"job": "render", "template": template, "variables": dict(variables)}
        return str(self._run(job, "the chat template", TemplateError))

    def end_of_turn(self, key: str, template: str, constants: Mapping[str, Any]) -> int | None:
        """Return the id of the control token that the template puts after an answer, None if there is none."""
        job = {"job": "end_of_turn", "key": key, "template": template, "constants": dict(constants)}
        token_id: int | None = self._run(job, "the chat template", TemplateError)
        return token_id

    def check_grammar(self, grammar: str) -> None:
        """Raise GrammarError for a grammar that cannot be compiled, or not within the limits."""
        self._run({"job": "check_grammar", "grammar": grammar}, "the format of the answer", GrammarError)

    def read_document(self, kind: str, data: bytes, name: str) -> dict[str, Any]:
        """Return the `text` of a document and, by kind, how many of its passages are `unseen`. kind: `pdf` or `docx`.
        FormatError names it and says why it cannot be read."""
        frame = frames.pack({"job": "document", "kind": kind, "data": data})
        with self._lock:
            try:
                read: dict[str, Any] = self._send(frame, frames.DOCUMENT_CPU_S, name, FormatError)
            except _DocumentError as error:
                raise FormatError(f"{name} {error}") from error
        return read

    def _run(self, job: dict[str, Any], what: str, error_class: type[QLocalError]) -> Any:
        try:
            frame = frames.pack(job)
        except (TypeError, ValueError, OverflowError) as error:
            raise error_class(
                f"{what} cannot be used: the conversation holds a value that is no JSON: {error}"
            ) from error
        if len(frame) > frames.MAX_REPLY_BYTES:
            raise error_class(f"{what} is asked to handle {len(frame)} bytes, the limit is {frames.MAX_REPLY_BYTES}")
        cpu_s = frames.cpu_limit_s(len(frame), job)
        with self._lock:
            try:
                return self._send(frame, cpu_s, what, error_class)
            except _UnknownKey:
                load_frame = self._vocabularies[job["key"]].load_frame
                self._send(load_frame, frames.LOAD_CPU_S, "the vocabulary", TokenizerError)
                return self._send(frame, cpu_s, what, error_class)

    def _send(
        self, frame: bytes, cpu_s: float, what: str, error_class: type[QLocalError], *, may_retry: bool = True
    ) -> Any:
        """Run one job in the helper. If somebody else has killed the helper, a new one gets the job, once."""
        try:
            reply = self._ensure_process().call(frame, WAIT_PER_CPU * cpu_s)
        except Gone as gone:
            self.close()
            log.debug("the guard was lost (%s): %s", gone.reason, gone.stderr)
            if gone.reason == "killed" and may_retry:
                return self._send(frame, cpu_s, what, error_class, may_retry=False)
            raise _breach(what, gone.reason, error_class, cpu_s) from gone
        if "ok" in reply:
            return reply["ok"]
        raise self._error(reply, what, error_class)

    def _error(self, reply: dict[str, Any], what: str, error_class: type[QLocalError]) -> Exception:
        kind, message = reply["error"], reply["message"]
        if kind == "unknown_key":
            return _UnknownKey(message)
        if kind == "document":
            return _DocumentError(message)
        if kind in ("memory", "crash"):
            self.close()  # it ends by itself as well: its state is in doubt
            log.debug("the guard ended a job: %s", message)
            return _breach(what, kind, error_class)
        classes: dict[str, type[QLocalError]] = {
            "template": TemplateError,
            "vocabulary": TokenizerError,
            "grammar": GrammarError,
        }
        return classes.get(kind, error_class)(message)

    def _ensure_process(self) -> GuardProcess:
        if self._process is None:
            self._process = GuardProcess()
            try:
                # Starting Python does not count to the time of the first job.
                self._process.call(frames.pack({"job": "ready"}), WAIT_PER_CPU * START_CPU_S)
            except Gone as gone:
                self.close()
                raise EngineError(
                    f"the guard process did not start: {gone.stderr.strip()[-200:] or gone.reason}"
                ) from gone
        return self._process


class _UnknownKey(Exception):
    """The helper is new, or has forgotten this vocabulary."""


class _DocumentError(Exception):
    """What is wrong with a document, behind its name."""


def _breach(what: str, reason: str, error_class: type[QLocalError], cpu_s: float = 0.0) -> QLocalError:
    limits = {
        "time": f"used more than {cpu_s:.0f} s of processor time",
        "wait": f"was not done within {WAIT_PER_CPU * cpu_s:.0f} s",
        "memory": "used more memory than it may",
        "output": f"gave more than {frames.MAX_REPLY_BYTES} bytes",
    }
    breach_class = TemplateLimitError if error_class is TemplateError else error_class
    return breach_class(f"{what} {limits.get(reason, 'made the guard process fail')}")


def _loaded(key: str, frame: bytes, reply: dict[str, Any]) -> LoadedVocabulary:
    lengths = array("I")
    lengths.frombytes(reply["token_lengths"])
    blob, table, position = reply["token_bytes"], [], 0
    for length in lengths:
        table.append(blob[position : position + length])
        position += length
    added = [(token_id, text, is_special) for token_id, text, is_special in reply["added"]]
    return LoadedVocabulary(key, table, added, reply["drops_first_blank"], reply["prefix_ids"], frame)


def _check_size(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise TokenizerError(f"the text has {size} bytes, the limit is {MAX_TEXT_BYTES}")


def _ids(packed: bytes) -> list[int]:
    ids = array("I")
    ids.frombytes(packed)
    return ids.tolist()
