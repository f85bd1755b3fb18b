"""What goes wrong inside the guard, as it travels to the client."""

from __future__ import annotations


class JobError(Exception):
    """A job was refused. `kind` decides the class that the client raises: `template`, `vocabulary` or `unknown_key`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def vocabulary_error(message: str) -> JobError:
    return JobError("vocabulary", message)


def template_error(message: str) -> JobError:
    return JobError("template", message)
