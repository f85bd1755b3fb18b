"""Which file of a model changed while it was loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlocal.server.model_files import ModelFiles


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "notes.txt")]
    for file in files:
        file.write_bytes(bytes(5000))
    return files


def test_files_that_stay_or_grow_are_not_told_of(parts: list[Path]) -> None:
    files = ModelFiles([str(parts[0])])
    with parts[1].open("ab") as file:
        file.write(b"more")
    assert files.changed() is None


def test_a_part_that_is_cut_is_told_with_both_sizes(parts: list[Path]) -> None:
    files = ModelFiles([str(parts[0])])
    os.truncate(parts[1], 17)
    assert files.changed() == f"{parts[1]} was 5,000 bytes when it was loaded, and is 17 now"


def test_what_is_gone_or_beside_the_model(parts: list[Path]) -> None:
    of_file, of_folder = ModelFiles([str(parts[0])]), ModelFiles([str(parts[0].parent)])
    parts[2].unlink()
    assert of_file.changed() is None
    assert f"{parts[2]} was 5,000 bytes" in (of_folder.changed() or "")


def test_a_model_that_is_nowhere_has_no_files(tmp_path: Path) -> None:
    assert ModelFiles([str(tmp_path / "none"), str(tmp_path / "none.gguf")]).changed() is None
