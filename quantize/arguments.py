"""Argument parsing shared by `quantize` and `quantize verify`: errors are one line, raised like any other."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qlocal.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Argparse whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"See `{self.prog} --help`.")
