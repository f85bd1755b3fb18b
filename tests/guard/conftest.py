"""One guard for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlocal.guard.client import Guard


@pytest.fixture(scope="session")
def guard() -> Iterator[Guard]:
    with Guard() as running:
        yield running
