"""A pytest plugin: writes where our errors were raised, as `file:line`, to the file that QLOCAL_REACHED names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qlocal.errors import QLocalError
from qlocal.guard.errors import JobError

ROOT = Path(__file__).resolve().parents[1]
REACHED: set[str] = set()


def _record(error_class: type[Exception]) -> None:
    original: Any = error_class.__init__

    def recording(self: Exception, *arguments: Any, **named: Any) -> None:
        frame = sys._getframe(1)
        for _ in range(3):  # where the error is made, and its callers: constructors of subclasses, helpers
            if frame is None:
                break
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT):
                REACHED.add(f"{path.relative_to(ROOT)}:{frame.f_lineno}")
            frame = frame.f_back  # type: ignore[assignment]
        original(self, *arguments, **named)

    error_class.__init__ = recording  # type: ignore[method-assign]


def pytest_configure() -> None:
    _record(QLocalError)
    _record(JobError)


def pytest_sessionfinish(session: pytest.Session) -> None:
    del session
    Path(os.environ["QLOCAL_REACHED"]).write_text("\n".join(sorted(REACHED)))
