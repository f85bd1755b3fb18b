"""Importance files in both formats say what was written, and damaged ones end in one sentence."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlocal.errors import FormatError, QLocalError
from qlocal.formats.imatrix_file import read_imatrix
from tests.formats import imatrix_files

NAME = "blk.0.attn_q.weight"
MEANS = torch.tensor([0.5, 0.0, 2.0, 1e-6])
WRITERS: list[Callable[[Path, dict[str, torch.Tensor]], Path]] = [imatrix_files.write_legacy, imatrix_files.write_gguf]


@pytest.mark.parametrize("write", WRITERS)
def test_values_are_means_over_tokens(write: Callable[..., Path], tmp_path: Path) -> None:
    found = read_imatrix(write(tmp_path / "m", {NAME: MEANS, "output.weight": MEANS + 1}))
    assert set(found.entries) == {NAME, "output.weight"}
    torch.testing.assert_close(torch.tensor(found.entries[NAME].values), MEANS)
    assert found.chunks == 3


def test_old_files_without_calls_and_trailer_are_read(tmp_path: Path) -> None:
    found = read_imatrix(imatrix_files.write_legacy(tmp_path / "m", {NAME: MEANS}, calls=0, trailer=False))
    torch.testing.assert_close(torch.tensor(found.entries[NAME].values), MEANS)
    assert found.chunks is None


def test_experts_are_divided_by_their_own_tokens_and_unseen_ones_are_known(tmp_path: Path) -> None:
    means = torch.rand(3, 4)
    path = imatrix_files.write_gguf(tmp_path / "m", {NAME: means}, {NAME: torch.tensor([5.0, 0.0, 700.0])})
    entry = read_imatrix(path).entries[NAME]
    assert entry.parts == 3 and entry.unseen == {1}
    torch.testing.assert_close(torch.tensor(entry.values).view(3, 4)[[0, 2]], means[[0, 2]])


def number(value: int) -> bytes:
    return struct.pack("<i", value)


GOOD = number(1) + imatrix_files.legacy_entry(NAME, MEANS, 1)
LEGACY_DAMAGES = {
    b"": "the number of entries ends at byte 4 of a file of 0 bytes",
    number(0): "the number of entries is 0, expected 1 to",
    number(-5): "the number of entries is -5",
    number(1 << 20): "the number of entries is 1048576",
    number(1) + number(0): "the length of the name of entry 0 is 0",
    number(1) + number(1 << 30): "the length of the name of entry 0 is 1073741824, expected 1 to 63",
    number(1) + number(3) + b"a\xff\xfe": "the name of entry 0 is not UTF-8",
    number(1) + number(3) + b"a\x1b[": "is not printable",
    number(1) + number(1) + b"a" + number(-1): "the number of calls of entry 'a' is -1",
    number(1) + number(1) + b"a" + number(1) + number(0): "the number of values of entry 'a' is 0",
    number(1) + number(1) + b"a" + number(1) + number((1 << 31) - 1): "the number of values of entry 'a' is 2147483647",
    number(1) + number(1) + b"a" + number(1) + number(1 << 25): "entry 'a' ends at byte",
    number(1) + imatrix_files.legacy_entry("a", torch.tensor([1.0, float("nan")]), 1): "values[1] is nan",
    number(1) + imatrix_files.legacy_entry("a", torch.tensor([float("inf"), 1.0]), 1): "values[0] is inf",
    number(1) + imatrix_files.legacy_entry("a", torch.tensor([1.0, -2.0]), 1): "values[1] is -2",
    number(2) + GOOD[4:] + GOOD[4:]: f"entry '{NAME}' appears twice",
    GOOD + number(1) + number(1 << 24): "the length of the text's name is 16777216",
    GOOD + number(1) + number(9) + b"short": "the text's name ends at byte",
    GOOD + number(1) + number(0) + b"more": "4 bytes follow where it should end",
}


@pytest.mark.parametrize(("content", "text"), LEGACY_DAMAGES.items(), ids=range(len(LEGACY_DAMAGES)))
def test_damaged_binary_file_is_named(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "m.dat").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_imatrix(tmp_path / "m.dat")
    assert "m.dat: " in str(caught.value) and text in str(caught.value)


ONE = torch.ones(1, 1)
GGUF_DAMAGES = [
    ({f"{NAME}.in_sum2": torch.ones(1, 4)}, f"'{NAME}.counts' is missing"),
    ({f"{NAME}.counts": ONE}, f"'{NAME}.in_sum2' is missing"),
    ({NAME: ONE}, "ends neither in .in_sum2 nor in .counts"),
    ({f"{NAME}.in_sum2": torch.ones(1, 4), f"{NAME}.counts": torch.ones(3, 1)}, "has 4 sums, no multiple of its 3"),
    ({f"{NAME}.in_sum2": torch.full((1, 4), torch.nan), f"{NAME}.counts": ONE}, "sums[0] is nan"),
    ({f"{NAME}.in_sum2": torch.ones(1, 4), f"{NAME}.counts": -ONE}, "counts[0] is -1"),
    ({f"{NAME}.in_sum2": torch.ones(1, 4), f"{NAME}.counts": ONE / 1e9}, "counts[0] is 1e-09, expected a whole number"),
    ({}, "holds no entries"),
]


@pytest.mark.parametrize(("tensors", "text"), GGUF_DAMAGES, ids=range(len(GGUF_DAMAGES)))
def test_damaged_gguf_file_is_named(tensors: dict[str, torch.Tensor], text: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        read_imatrix(imatrix_files.write_tensors(tmp_path / "m.gguf", tensors))
    assert "m.gguf: " in str(caught.value) and text in str(caught.value)


def test_model_file_is_refused_by_its_kind(tmp_path: Path) -> None:
    path = imatrix_files.write_tensors(tmp_path / "m.gguf", {NAME: ONE}, kind="model")
    with pytest.raises(FormatError, match=r"general\.type is 'model', expected 'imatrix'"):
        read_imatrix(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_bytes_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "changed"
    data.draw(st.sampled_from(WRITERS))(path, {NAME: MEANS, "a": MEANS})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_imatrix(path)
    except QLocalError:
        return
    assert all(0 <= value < math.inf for entry in found.entries.values() for value in entry.values)
