"""A hash of what a model's files hold: the same wherever they lie, another when they hold something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlocal.formats.identity import content_identity, weights_identity


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"model-{number}.safetensors" for number in (1, 2)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes((n * n + number) % 251 for n in range(3 << 20)))
    return paths


def test_files_that_were_copied_and_touched_hold_what_they_held(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    copies = [other / f"renamed-{path.name}" for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())
        os.utime(copy, (1, 1))
    assert content_identity(copies) == content_identity(reversed(files))
    assert weights_identity(copies) != weights_identity(files)


@pytest.mark.parametrize("place", [0, 1 << 20, (2 << 20) + 4095, (3 << 20) - 1])
def test_another_byte_is_another_hash_though_name_size_and_time_are_the_same(files: list[Path], place: int) -> None:
    before, status = content_identity(files), files[1].stat()
    data = bytearray(files[1].read_bytes())
    data[place] ^= 1
    files[1].write_bytes(data)
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_identity(files) != before


def test_a_byte_that_moves_to_the_next_file_is_another_hash(files: list[Path]) -> None:
    before, (first, second) = content_identity(files), (path.read_bytes() for path in files)
    files[0].write_bytes(first[:-1])
    files[1].write_bytes(first[-1:] + second)
    assert content_identity(files) != before


def test_an_empty_file_and_one_smaller_than_a_piece_have_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"x")
    assert content_identity([tmp_path / "a"]) != content_identity([tmp_path / "b"])
