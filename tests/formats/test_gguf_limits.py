"""A GGUF file may reach every limit of docs/formats.md and not pass it, and refusals quote what they name in part."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from qlocal.errors import FormatError
from qlocal.formats import gguf_reader
from qlocal.formats.gguf_reader import GgufHeader, read_gguf
from tests.formats.gguf_files import file_bytes, float_bytes, info, key, string

U8, U32, STR, ARR = 0, 4, 8, 9
LONG = "k" * 70


def read(folder: Path, content: bytes, name: str = "x.gguf") -> GgufHeader:
    path = folder / name
    path.write_bytes(content)
    return read_gguf(path)


def strings(*values: str) -> bytes:
    return struct.pack("<IQ", STR, len(values)) + b"".join(map(string, values))


def alignment(size: int) -> bytes:
    keys = [key("general.alignment", U32, struct.pack("<I", size))]
    return file_bytes(keys, [info("a", [8])], float_bytes(8), alignment=size)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(version: int, tmp_path: Path) -> None:
    header = read(tmp_path, file_bytes([], [info("a", [8])], float_bytes(8), version=version))
    assert list(header.tensors) == ["a"]


def test_the_limits_are_those_of_the_page() -> None:
    limits = {
        "MAX_KEYS": 65_536,
        "MAX_TENSORS": 65_536,
        "MAX_KEY_BYTES": 65_535,
        "MAX_STRING_BYTES": 16 << 20,
        "MAX_HEADER_BYTES": 32 << 20,
        "MAX_ARRAY_ELEMENTS": 3 << 19,
        "MAX_DIM": 1 << 40,
        "MAX_SPLITS": 1024,
    }
    assert {name: getattr(gguf_reader, name) for name in limits} == limits


def test_a_header_may_end_with_the_file(tmp_path: Path) -> None:
    for values in (("a", ""), ("",), ("a", "bc")):
        header = read(tmp_path, file_bytes([key("k", ARR, strings(*values))], alignment=1))
        assert header.metadata["k"].value == list(values)
    array = struct.pack("<IQ", U8, 5) + b"abcde"
    assert read(tmp_path, file_bytes([key("k", ARR, array)], alignment=1)).metadata["k"].value == list(b"abcde")
    with pytest.raises(FormatError, match="says it holds 5 elements in 'k', more than its 53 bytes can"):
        read(tmp_path, file_bytes([key("k", ARR, array[:-1])], alignment=1))


def test_what_is_missing_is_told_by_number(tmp_path: Path) -> None:
    cut = file_bytes([key("k", ARR, strings("a", "b" * 100))], alignment=1)[:-90]
    with pytest.raises(FormatError, match=rf"117 bytes expected at byte 49 of a file of {len(cut)} bytes"):
        read(tmp_path, cut)
    short = file_bytes([], [info("a", [8])], float_bytes(7))
    with pytest.raises(FormatError, match=f"ends at byte {len(short) + 4}, the file has {len(short)} bytes"):
        read(tmp_path, short)


def test_a_text_may_have_the_most_bytes_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_reader, "MAX_STRING_BYTES", 9)
    assert read(tmp_path, file_bytes([key("k", STR, string("x" * 9))])).metadata["k"].value == "x" * 9
    with pytest.raises(FormatError, match="'k' has 10 bytes, at most 9"):
        read(tmp_path, file_bytes([key("k", STR, string("x" * 10))]))


def test_arrays_may_have_the_most_elements_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_reader, "MAX_ARRAY_ELEMENTS", 5)
    two, three = (struct.pack("<IQ", U8, count) + bytes(count) for count in (2, 3))
    assert len(read(tmp_path, file_bytes([key("a", ARR, two), key("b", ARR, three)])).metadata) == 2
    with pytest.raises(FormatError, match="says it holds 3 elements in 'b', at most 2"):
        read(tmp_path, file_bytes([key("a", ARR, three), key("b", ARR, three)]))


@pytest.mark.parametrize("size", [8, 65_536])
def test_the_least_and_the_largest_alignment_are_read(tmp_path: Path, size: int) -> None:
    assert read(tmp_path, alignment(size)).tensors["a"].offset % size == 0
    for wrong in (size // 2 if size == 8 else size * 2, size + 1):
        with pytest.raises(FormatError, match=rf"general\.alignment is {wrong}, "):
            read(tmp_path, alignment(wrong))


def split(folder: Path, count: int, **fields: int) -> Path:
    """Write a file of so many parts, a tensor in each; return the first. fields: of that, instead of its own."""
    for number in range(count):
        own = {"split.no": number, "split.count": count, **(fields if number == 0 else {})}
        keys = [key(name, 2, struct.pack("<H", value)) for name, value in own.items() if value >= 0]
        path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(file_bytes(keys, [info(f"t{number}", [8])], float_bytes(8)))
    return folder / f"m-00001-of-{count:05d}.gguf"


def test_a_file_may_have_the_most_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_reader, "MAX_SPLITS", 3)
    assert len(read_gguf(split(tmp_path, 3)).tensors) == 3
    with pytest.raises(FormatError, match=r"split\.count is 4"):
        read_gguf(split(tmp_path, 4))


def test_a_first_part_need_not_say_that_it_is(tmp_path: Path) -> None:
    assert len(read_gguf(split(tmp_path, 2, **{"split.no": -1})).tensors) == 2
    with pytest.raises(FormatError, match="is not the first part"):
        read_gguf(split(tmp_path, 2, **{"split.no": 1}))


@pytest.mark.parametrize(
    ("content", "quoted"),
    [
        (file_bytes([key(LONG + "\0", U32, bytes(4))]), f"key '{LONG[:60]}' is empty or not printable"),
        (file_bytes([key(LONG, U32, bytes(4))] * 2), f"key '{LONG[:60]}' appears twice"),
        (file_bytes([key(LONG, 99, bytes(4))]), f"'{LONG[:60]}' has the unknown value type 99"),
        (file_bytes([key(LONG, ARR, struct.pack("<IQ", ARR, 1) + bytes(16))]), f"'{LONG[:60]}' is an array of arrays"),
        (file_bytes([key(LONG, ARR, struct.pack("<IQ", U8, 1 << 40))]), f"elements in '{LONG[:60]}', at most"),
        (file_bytes([key(LONG, STR, string(b"\xff"))]), f"'{LONG[:60]}' is not UTF-8"),
        (file_bytes([key(LONG, ARR, struct.pack("<IQ", STR, 1) + string(b"\xff"))]), f"'{LONG[:60]}' [0] is not UTF-8"),
        (file_bytes([key("general.alignment", STR, string("9" * 50))]), f"general.alignment is {'9' * 40}, expected"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_long_names_are_quoted_in_part(tmp_path: Path, content: bytes, quoted: str) -> None:
    with pytest.raises(FormatError, match=re.escape(quoted)):
        read(tmp_path, content)
