"""A safetensors file may reach every limit of docs/formats.md and not pass it, and refusals quote what they name in
part."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from qlocal.errors import FormatError
from qlocal.formats import safetensors_file
from qlocal.formats.safetensors_file import TensorInfo, read_header

LONG = "n" * 130


def read(folder: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> dict[str, TensorInfo]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return read_header(path)


def entry(begin: int = 0, end: int = 8, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_the_limits_are_those_of_the_page() -> None:
    found = (safetensors_file.MAX_HEADER_BYTES, safetensors_file.MAX_TENSORS, safetensors_file.MAX_DIMS)
    assert found == (32 << 20, 262_144, 8)


def test_a_header_may_have_the_most_bytes_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"a": entry()}).encode()
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", len(text))
    assert list(read(tmp_path, text, bytes(8))) == ["a"]
    with pytest.raises(FormatError, match=f"header of {len(text) + 1} bytes, at most {len(text)}"):
        read(tmp_path, text + b" ", bytes(8))


def test_a_file_may_be_a_header_alone_and_a_header_must_be_whole(tmp_path: Path) -> None:
    assert read(tmp_path, b"{}") == {}
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(7))
    with pytest.raises(FormatError, match="has 7 bytes, too few"):
        read_header(path)
    path.write_bytes(bytes(8))
    with pytest.raises(FormatError, match="header: is not valid JSON"):
        read_header(path)
    path.write_bytes(struct.pack("<Q", 3) + b"{}")
    with pytest.raises(FormatError, match="header of 3 bytes in a file of 10 bytes"):
        read_header(path)


def test_there_may_be_the_most_tensors_and_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 2)
    most = {"__metadata__": {}, "a": entry(shape=(1,) * 7 + (2,)), "b": entry(8, 8, shape=(0,))}
    found = read(tmp_path, most, bytes(8))
    assert (found["a"].shape, found["b"].num_bytes) == ((1, 1, 1, 1, 1, 1, 1, 2), 0)
    with pytest.raises(FormatError, match="3 tensors, at most 2"):
        read(tmp_path, {**most, "c": entry(8, 8, shape=(0,))}, bytes(8))


def test_a_name_may_have_1024_characters(tmp_path: Path) -> None:
    assert list(read(tmp_path, {"n" * 1024: entry()}, bytes(8))) == ["n" * 1024]
    with pytest.raises(FormatError, match="empty, too long"):
        read(tmp_path, {"n" * 1025: entry()}, bytes(8))


def test_numbers_may_lie_below_2_to_the_48(tmp_path: Path) -> None:
    almost = entry(0, 0, shape=((1 << 48) - 1, 0))
    assert read(tmp_path, {"a": almost})["a"].shape == ((1 << 48) - 1, 0)
    with pytest.raises(FormatError, match="shape is not a list"):
        read(tmp_path, {"a": entry(0, 0, shape=(1 << 48, 0))})


@pytest.mark.parametrize(("begin", "end", "span"), [(0, 9, 9), (8, 24, 16), (8, 0, -8), (3, 9, 6)])
def test_a_span_of_other_bytes_is_told_by_number(tmp_path: Path, begin: int, end: int, span: int) -> None:
    with pytest.raises(FormatError, match=rf"F32 \(2,\) takes 8 bytes, data_offsets span {span}$"):
        read(tmp_path, {"a": entry(begin, end)}, bytes(24))


@pytest.mark.parametrize(("dtype", "size"), sorted(safetensors_file.ITEM_SIZES.items()))
def test_every_dtype_takes_its_bytes(tmp_path: Path, dtype: str, size: int) -> None:
    bits = {"BOOL": 8, "E4M3": 8, "E5M2": 8, "E8M0": 8}.get(dtype.split("_")[-1]) or int(dtype.lstrip("BFIU"))
    assert 8 * size == bits
    assert read(tmp_path, {"a": entry(0, 3 * size, dtype, (3,))}, bytes(3 * size))["a"].num_bytes == 3 * size


def test_long_names_and_dtypes_are_quoted_in_part(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=f"tensor '{LONG[:120]}': needs dtype"):
        read(tmp_path, {LONG: {}})
    with pytest.raises(FormatError, match=f"dtype '{LONG[:40]}' is unknown"):
        read(tmp_path, {"a": entry(dtype=LONG)}, bytes(8))
