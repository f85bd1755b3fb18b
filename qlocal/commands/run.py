"""`qlocal run`: one question, its answer on standard output. Goes through the server, as the chat does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import shtab

from qlocal import launch
from qlocal.clean import clean, clean_line
from qlocal.commands.options import (
    add_engine,
    add_model,
    engine_options,
    positive,
    probability,
    readable_file,
    seed,
    session_name,
    temperature,
)
from qlocal.commands.waiting import CLEAR_LINE, wait_until_ready
from qlocal.config import RunOptions
from qlocal.errors import EngineError, UsageError
from qlocal.schema import PromptProgress, QueuePlace

MAX_PROMPT_BYTES = 16 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the question; - or none reads standard input")
    parser.add_argument(
        "--file",
        type=readable_file,
        action="append",
        default=[],
        help="a text before the question; may be given several times",
    ).complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told what completes it
    parser.add_argument(
        "--truncate", choices=("middle",), help="leave out the middle of a prompt that is longer than the context"
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--temperature", type=temperature, help="0 takes the most likely token")
    parser.add_argument("--top-p", type=probability, help="sample from the most likely tokens of this total")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="end the answer after so many tokens")
    parser.add_argument("--seed", type=seed, help="the same seed gives the same answer")
    parser.add_argument("--stats", action="store_true", help="tell tokens, speed and guesses on standard error")
    parser.add_argument(
        "--save", type=session_name, metavar="NAME", help="keep the prompt on disk, so that it is never read again"
    )
    parser.add_argument("--json", action="store_true", help="print the answer with its usage as JSON")
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    engine, _ = engine_options(args)
    if args.save is not None and args.truncate is not None:
        raise UsageError("--save keeps a prompt whole, which --truncate cuts", hint="Leave out one of them.")
    options = RunOptions(
        model=args.model,
        prompt=_with_files(args.file, args.prompt),
        system=args.system,
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
        seed=args.seed,
        json=args.json,
        stats=args.stats,
        truncate=args.truncate,
        save=args.save,
        engine=engine,
    )
    address = launch.ensure_server(
        options.model, options.engine, lambda said: print(f"qlocal: {clean_line(said)}", file=sys.stderr)
    )
    wait_until_ready(address)
    if options.json:
        print(json.dumps(_answer(address, options), ensure_ascii=False))
    else:
        usage: dict[str, Any] = {}
        _print_stream(_deltas(address, options, usage))
        if left_out := usage.get("qlocal", {}).get("left_out_tokens"):
            print(f"qlocal: {left_out:,} tokens in the middle of the prompt were left out", file=sys.stderr)
        if options.stats:
            print(stats_line(usage), file=sys.stderr)
    if options.save is not None:
        kept = _save(address, options, options.save)
        print(f"qlocal: {kept:,} tokens are kept as '{options.save}'", file=sys.stderr)
    return 0


def _prompt(given: str | None) -> str:
    text = given if given not in (None, "-") else _read(sys.stdin.buffer, "standard input")
    if not text or not text.strip():
        raise UsageError("the prompt is empty", hint="Give it as an argument, or on standard input with -.")
    return text


def _with_files(files: Sequence[Path], given: str | None) -> str:
    """Return the files' texts and the question behind them: another question about them computes only itself."""
    if not files:
        return _prompt(given)
    texts = []
    for path in files:
        with path.open("rb") as file:
            texts.append(_read(file, str(path)))
    question = [] if given is None else [_prompt(given)]
    return "\n\n".join([*texts, *question])


def _read(file: BinaryIO, name: str) -> str:
    data = file.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"{name} is larger than {MAX_PROMPT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8: byte {error.start} cannot be decoded") from error


def _body(options: RunOptions) -> dict[str, Any]:
    messages = [{"role": "system", "content": options.system}] if options.system is not None else []
    messages.append({"role": "user", "content": options.prompt})
    sampling = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "truncate": options.truncate,
    }
    return {"messages": messages, **{name: value for name, value in sampling.items() if value is not None}}


def _answer(address: launch.Address, options: RunOptions) -> Any:
    with launch.connect(address, read_timeout_s=None) as client:
        response = _checked(client.post("/v1/chat/completions", json=_body(options)))
    return response.json()


def _save(address: launch.Address, options: RunOptions, name: str) -> int:
    """Keep the prompt on disk under a name; return how many of its tokens are."""
    body = {"name": name, "messages": _body(options)["messages"]}
    with launch.connect(address, read_timeout_s=None) as client:
        tokens: int = _checked(client.post("/qlocal/sessions", json=body)).json()["tokens"]
    return tokens


def stats_line(usage: Mapping[str, Any]) -> str:
    """Return what an answer took, of OpenAI's usage object with our own inside."""
    own = usage.get("qlocal", {})
    restored = f", {own['restored_tokens']} of them restored" if own.get("restored_tokens") else ""
    line = (
        f"prompt {usage.get('prompt_tokens', 0)} tokens ({own.get('cached_tokens', 0)} not computed again{restored}) "
        f"in {own.get('prefill_s', 0.0):.2f} s; answer {usage.get('completion_tokens', 0)} tokens, "
        f"{own.get('tokens_per_s', 0.0):.1f} tokens/s"
    )
    drafted, accepted = own.get("drafted_tokens", 0), own.get("accepted_tokens", 0)
    return f"{line}; {accepted} of {drafted} guessed tokens were right" if drafted else line


def _deltas(address: launch.Address, options: RunOptions, usage: dict[str, Any]) -> Iterator[str]:
    """Yield the answer's text as it comes, and put its usage into `usage`. EngineError when the stream ends without its
    proper end."""
    body = _body(options) | {"stream": True, "stream_options": {"include_usage": True}}
    with (
        launch.connect(address) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        _checked(response)
        for chunk in launch.events_of(response, _show_progress):
            if chunk is None:
                return
            if "error" in chunk:
                raise EngineError(chunk["error"]["message"])
            usage.update(chunk.get("usage") or {})
            yield from (choice["delta"].get("content") or "" for choice in chunk["choices"])
    raise EngineError("the server ended in the middle of the answer")


def _show_progress(said: Mapping[str, Any]) -> None:
    """Show on a line, which the answer takes the place of, its place in the queue or how far its prompt is read."""
    if sys.stderr.isatty():
        told = QueuePlace(**said) if "ahead" in said else PromptProgress(**said)
        line = clean_line(told.sentence)
        print(f"{CLEAR_LINE}{line}", end="", file=sys.stderr, flush=True)


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code != 200:
        response.read()
        raise launch.error_of(response)
    return response


def _print_stream(deltas: Iterator[str]) -> None:
    last, has_begun = "", False
    for text in deltas:
        if text and not has_begun and sys.stderr.isatty():
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
        has_begun = has_begun or bool(text)
        sys.stdout.write(clean(text))
        sys.stdout.flush()
        last = text or last
    if not last.endswith("\n"):
        print(flush=True)
