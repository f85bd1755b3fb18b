"""Every error that a file, a user or a request can cause.

    QLocalError                  exit code 2, one sentence and a hint
    ├── UsageError               a command line option or its value
    ├── ConfigError              a field of config.json, config.toml or models.toml
    │   └── UnsupportedError     well formed, but not built here: architecture, feature, layout
    ├── FormatError              bytes of a file are not what its format says
    │   └── CheckpointError      tensors missing, extra or misshapen; all of them at once
    ├── TokenizerError           vocabulary or text cannot be encoded
    │   └── TemplateError        a chat template failed or refused the conversation
    │       └── TemplateLimitError  it used more time or memory than it may
    ├── GrammarError             the format that a request wants its answer in cannot be followed
    ├── PlanError                it does not fit: memory, disk, context
    ├── SessionError             a stored block of a conversation is another model's, or damaged
    ├── ResumeError              a work folder belongs to other arguments or another source
    ├── QualityError             `quantize verify` measured too great a distance (exit code 3)
    ├── RequestError             an HTTP request; carries status, param and code
    ├── EngineError              a rank or helper process failed or went away
    ├── ServerError              a server cannot be reached, went away or answers nonsense
    └── HistoryError             the chat's history file cannot be opened, read or written

Raised where the knowledge is, shown once: the command line prints it, the server sends it as JSON,
the chat shows it beside the prompt.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class QLocalError(Exception):
    """Base of all expected failures. `message` is one sentence, `hint` says what to do next."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}. {self.hint}"


class UsageError(QLocalError):
    """A command line option, or the combination of several."""


class ConfigError(QLocalError):
    """A field of a configuration file is missing, of the wrong kind or out of its range."""


class UnsupportedError(ConfigError):
    """A valid file that asks for something which is not built here."""


class FormatError(QLocalError):
    """The bytes of a file contradict its format."""


class CheckpointError(FormatError):
    """The tensors of a checkpoint do not match its architecture; `problems` lists every one."""

    def __init__(self, message: str, problems: list[str], *, hint: str | None = None) -> None:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        super().__init__(f"{message}: {shown}", hint=hint)
        self.problems = problems


class TokenizerError(QLocalError):
    """A vocabulary is malformed, or a text cannot be encoded with it."""


class TemplateError(TokenizerError):
    """A chat template raised, or refused the conversation."""


class TemplateLimitError(TemplateError):
    """A chat template used more time or memory than it may, or made the process fail that it runs in."""


class GrammarError(QLocalError):
    """A JSON schema or grammar that an answer shall follow cannot be compiled, or took more work than it may."""


class PlanError(QLocalError):
    """What was asked for does not fit into memory, disk or context."""


class SessionError(QLocalError):
    """A file with a block of a conversation's keys and values cannot be taken over."""


class ResumeError(QLocalError):
    """An unfinished quantization cannot be continued with these arguments."""


class QualityError(QLocalError):
    """A measured distance lies outside its gate."""

    exit_code = 3


class RequestError(QLocalError):
    """An HTTP request that cannot be served; becomes `{"error": {message, type, param, code}}`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code


class EngineError(QLocalError):
    """An engine rank or a helper process failed, or stopped answering."""


class ServerError(QLocalError):
    """A server that the chat talks to cannot be reached, went away, refused, or sent nonsense."""


class HistoryError(QLocalError):
    """The file of past conversations cannot be opened, read or written."""


_OUT_OF_MEMORY = "allocate memory", "out of memory", "std::bad_alloc"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory: Python's, the system's or torch's, which has only words for it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in told for words in _OUT_OF_MEMORY)
    )


@contextmanager
def memory_in_words(told: PlanError | None = None) -> Iterator[None]:
    """Turn whatever torch and the system raise without memory into `told`, or into what holds for any command."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "End what takes it, or choose a smaller model or context."
        raise told or PlanError("there is no memory left for this", hint=hint) from error
