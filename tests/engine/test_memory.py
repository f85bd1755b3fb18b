"""Memory that runs out while loading is said in a sentence with the plan's numbers, once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from qlocal.engine import loading
from qlocal.engine.engine import Engine
from qlocal.engine.loading import load_engine
from qlocal.errors import PlanError, UnsupportedError
from qlocal.plan import places
from qlocal.protocol import Load
from tests import tiny

GIB = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model")


def load(folder: Path, *devices: str) -> Engine:
    return load_engine(Load(str(folder), list(devices), max_context=512), lambda _: None)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_sentence_has_what_was_planned_and_what_to_do(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loading, "load_model", fail)
    with pytest.raises(PlanError, match=r"ran out while model was loaded.* MiB of .* free on cpu.*--context 256"):
        load(folder, "cpu")


def test_other_failures_are_left_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(loading, "load_model", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        load(folder, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this PyTorch does find cards")
def test_a_card_that_torch_cannot_use_is_said_before_anything_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda device: 8 * GIB)
    monkeypatch.setattr(places, "taken_bytes", lambda device: 0)
    with pytest.raises(UnsupportedError, match=r"cuda:0 cannot be used: PyTorch .* finds no CUDA"):
        load(folder, "cuda:0")
