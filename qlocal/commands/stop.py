"""`qlocal stop`: ends this user's server."""

from __future__ import annotations

import argparse

from qlocal import launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    print("the server has ended" if launch.stop() else "no server is running")
    return 0
