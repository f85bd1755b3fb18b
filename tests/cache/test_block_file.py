"""Blocks in files: what is read is what was written, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlocal.cache.block_file import PAYLOAD_START, read_block, read_header, write_block
from qlocal.errors import SessionError

MADE_BY = {"weights": "abc", "keys and values": "q8,q4"}
PARENT = "0" * 32


def parts_of(seed: int = 0, size: int = 1000) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (2, size), dtype=torch.uint8, generator=generator) for _ in range(4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "block.kv"
    assert write_block(found, MADE_BY, PARENT, [5, 6, 7], parts_of()) == found.stat().st_size
    return found


def test_a_block_is_read_as_it_was_written(path: Path) -> None:
    parts = [torch.zeros_like(part) for part in parts_of()]
    header = read_block(path, parts)
    assert all(torch.equal(a, b) for a, b in zip(parts, parts_of(), strict=True))
    assert header == read_header(path) and header.token_ids == [5, 6, 7]
    assert path.stat().st_mode & 0o077 == 0, "what was said is nobody else's business"
    header.require(MADE_BY, PARENT, [5, 6], path)


def test_a_header_longer_than_a_page_moves_the_payload(tmp_path: Path) -> None:
    path, token_ids = tmp_path / "long.kv", list(range(100_000, 103_000))
    write_block(path, MADE_BY, PARENT, token_ids, parts_of())
    assert path.stat().st_size % PAYLOAD_START == 8000 % PAYLOAD_START
    assert read_block(path, parts_of(1)).token_ids == token_ids


@pytest.mark.parametrize(
    ("made_by", "parent", "token_ids", "said"),
    [
        ({"weights": "other"}, PARENT, [5], "weights 'abc', expected 'other'"),
        ({"keys and values": "f16,f16"}, PARENT, [5], "keys and values 'q8,q4', expected 'f16,f16'"),
        ({"rotary scaling": "yarn"}, PARENT, [5], "rotary scaling None, expected 'yarn'"),
        (MADE_BY, "1" * 32, [5], "another conversation"),
        (MADE_BY, PARENT, [5, 9], "another conversation"),
    ],
)
def test_what_belongs_to_something_else_is_refused(
    path: Path, made_by: dict[str, str], parent: str, token_ids: list[int], said: str
) -> None:
    with pytest.raises(SessionError, match=said):
        read_header(path).require(made_by, parent, token_ids, path)


def test_damage_is_noticed_wherever_it_is(path: Path) -> None:
    whole = path.read_bytes()
    for at in (0, 9, 40, PAYLOAD_START, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(SessionError):
            read_block(path, parts_of(1)).require(MADE_BY, PARENT, [5, 6, 7], path)
    for length in (0, 5, 20, PAYLOAD_START, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SessionError):
            read_block(path, parts_of(1))


def test_a_block_of_another_size_is_refused_with_both(path: Path) -> None:
    with pytest.raises(SessionError, match="holds 8000 bytes, expected 4000"):
        read_block(path, parts_of(size=500))


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space"):
        write_block(tmp_path / "block.kv", MADE_BY, PARENT, [1], parts_of())
    assert list(tmp_path.iterdir()) == []
