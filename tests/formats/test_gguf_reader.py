"""Every number of a GGUF header may lie: each lie is refused by name, quickly and without much memory."""

import struct
import sys
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlocal.errors import FormatError, QLocalError
from qlocal.formats.gguf_reader import read_gguf
from qlocal.formats.gguf_values import ValueType
from tests.formats import gguf_files
from tests.formats.gguf_files import file_bytes, float_bytes, info, key, string

U32, STR, ARR = 4, 8, 9
TWO = struct.pack("<I", 2)
F32_ROW = info("a", [8])

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected at byte 0"),
    "magic alone": (b"GGUF", "expected at byte 4"),
    "another magic": (b"GGML" + bytes(40), "does not begin with 'GGUF'"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "version 1": (file_bytes(version=1), "version 1 is not"),
    "version 4": (file_bytes(version=4), "version 4 is not"),
    "2^60 keys": (file_bytes(num_keys=1 << 60), "1152921504606846976 keys"),
    "2^64-1 keys": (file_bytes(num_keys=(1 << 64) - 1), "keys, at most"),
    "more keys than bytes": (file_bytes(num_keys=60_000), "more than its"),
    "2^60 tensors": (file_bytes(num_tensors=1 << 60), "tensors, at most"),
    "more tensors than bytes": (file_bytes(num_tensors=60_000), "more than its"),
    "key of 2^62 bytes": (file_bytes([struct.pack("<Q", 1 << 62) + bytes(64)]), "a key has"),
    "key beyond the file": (file_bytes([struct.pack("<Q", 60_000) + bytes(64)]), "expected at byte"),
    "empty key": (file_bytes([key("", U32, TWO)]), "empty or not printable"),
    "key with escape": (file_bytes([key("a\x1b[2J", U32, TWO)]), "not printable"),
    "key with NUL": (file_bytes([key("a\0b", U32, TWO)]), "not printable"),
    "key not UTF-8": (file_bytes([key(b"\xff\xfe", U32, TWO)]), "not UTF-8"),
    "key twice": (file_bytes([key("a", U32, TWO), key("a", U32, TWO)]), "'a' appears twice"),
    "value type 13": (file_bytes([key("a", 13, bytes(16))]), "unknown value type 13"),
    "value type 2^32-1": (file_bytes([key("a", 0xFFFFFFFF, bytes(16))]), "unknown value type"),
    "string of 2^62 bytes": (file_bytes([key("a", STR, struct.pack("<Q", 1 << 62) + bytes(16))]), "'a' has"),
    "string beyond the file": (file_bytes([key("a", STR, struct.pack("<Q", 1000) + bytes(16))]), "expected at byte"),
    "string not UTF-8": (file_bytes([key("a", STR, string(b"\x80"))]), "'a' is not UTF-8"),
    "array of 2^63": (file_bytes([key("a", ARR, struct.pack("<IQ", 0, 1 << 63))]), "elements in 'a', at most"),
    "array beyond the file": (file_bytes([key("a", ARR, struct.pack("<IQ", U32, 1000))]), "more than its"),
    "array of strings beyond": (file_bytes([key("a", ARR, struct.pack("<IQ", STR, 4) + string("x") + bytes(16)
        + struct.pack("<Q", 1 << 40))]), "expected at byte"),
    "array of strings that overflow": (file_bytes([key("a", ARR, struct.pack("<IQ", STR, 2)
        + struct.pack("<Q", (1 << 64) - 1) + bytes(32))]), "expected at byte"),
    "array string not UTF-8": (file_bytes([key("a", ARR, struct.pack("<IQ", STR, 2) + string("x")
        + string(b"\xff"))]), r"'a' \[1\] is not UTF-8"),
    "array of unknown": (file_bytes([key("a", ARR, struct.pack("<IQ", 99, 1) + bytes(16))]), "unknown value type 99"),
    "array of arrays": (file_bytes([key("a", ARR, struct.pack("<IQ", ARR, 1) + bytes(16))]), "array of arrays"),
    "arrays nested 5000 deep": (file_bytes([key("a", ARR, struct.pack("<IQ", ARR, 1) * 5000)]), "array of arrays"),
    "name of 64 bytes": (file_bytes(infos=[info("n" * 64, [8])], data=bytes(32)), "64 bytes, at most 63"),
    "empty name": (file_bytes(infos=[info("", [8])], data=bytes(32)), "name is empty"),
    "name with escape": (file_bytes(infos=[info("a\x1b]0;", [8])], data=bytes(32)), "not printable"),
    "name twice": (file_bytes(infos=[F32_ROW, info("a", [8], 0, 32)], data=bytes(64)), "appears twice"),
    "no dims": (file_bytes(infos=[info("a", [])], data=bytes(32)), "0 dimensions"),
    "five dims": (file_bytes(infos=[info("a", [1] * 5)], data=bytes(32)), "5 dimensions"),
    "a million dims": (file_bytes(infos=[string("a") + struct.pack("<I", 10**6) + bytes(64)]), "1000000 dimensions"),
    "dim 0": (file_bytes(infos=[info("a", [8, 0])], data=bytes(32)), r"dimensions \(8, 0\)"),
    "dim -1": (file_bytes(infos=[info("a", [(1 << 64) - 1])], data=bytes(32)), "expected 1 to 2"),
    "product beyond 2^64": (file_bytes(infos=[info("a", [1 << 33, 1 << 33])], data=bytes(32)), "ends at byte"),
    "product that wraps to 0": (file_bytes(infos=[info("a", [1 << 32, 1 << 32])], data=bytes(32)), "ends at byte"),
    "type 999": (file_bytes(infos=[info("a", [8], 999)], data=bytes(32)), "GGML type 999"),
    "removed type 4": (file_bytes(infos=[info("a", [32], 4)], data=bytes(32)), "GGML type 4 "),
    "row of half a block": (file_bytes(infos=[info("a", [48], 2)], data=bytes(64)), "no multiple of Q4_0's 32"),
    "row of no super-block": (file_bytes(infos=[info("a", [128], 12)], data=bytes(96)), "no multiple of Q4_K's 256"),
    "offset in front": (file_bytes(infos=[info("a", [8], 0, 32)], data=bytes(96)), "lies at byte 32"),
    "offset unaligned": (file_bytes(infos=[F32_ROW, info("b", [8], 0, 33)], data=bytes(96)), "lies at byte 33"),
    "overlap": (file_bytes(infos=[F32_ROW, info("b", [8], 0, 0)], data=bytes(96)), "lies at byte 0"),
    "gap": (file_bytes(infos=[F32_ROW, info("b", [8], 0, 64)], data=bytes(96)), "lies at byte 64"),
    "offset 2^63": (file_bytes(infos=[F32_ROW, info("b", [8], 0, 1 << 63)], data=bytes(96)), "lies at byte 9"),
    "data beyond the file": (file_bytes(infos=[F32_ROW], data=bytes(31)), "ends at byte"),
    "no data": (file_bytes(infos=[F32_ROW]), "ends at byte"),
    "infos cut": (file_bytes(infos=[F32_ROW])[:-30], "."),
    "alignment 0": (file_bytes([key("general.alignment", U32, struct.pack("<I", 0))]), "general.alignment is 0"),
    "alignment 3": (file_bytes([key("general.alignment", U32, struct.pack("<I", 3))]), "general.alignment is 3"),
    "alignment 4": (file_bytes([key("general.alignment", U32, struct.pack("<I", 4))]), "power of two from 8"),
    "alignment 48": (file_bytes([key("general.alignment", U32, struct.pack("<I", 48))]), "general.alignment is 48"),
    "alignment 2^30": (file_bytes([key("general.alignment", U32, struct.pack("<I", 1 << 30))]), "to 65536"),
    "alignment a string": (file_bytes([key("general.alignment", STR, string("32"))]), "general.alignment is 32"),
    "alignment an array": (file_bytes([key("general.alignment", ARR, struct.pack("<IQI", U32, 1, 32))]), "alignment"),
    "alignment u64": (file_bytes([key("general.alignment", 10, struct.pack("<Q", 32))]), "general.alignment is 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(QLocalError, match=message) as caught:
        read_gguf(path)
    elapsed, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.message.startswith("x.gguf")
    assert elapsed < 1 and peak < max(4 * len(content), 1 << 20)


def test_nesting_needs_no_recursion(tmp_path: Path) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        for depth in (1, 2, 16, 5000):
            nested = struct.pack("<IQ", ARR, 1) * depth + struct.pack("<IQI", U32, 1, 7)
            (tmp_path / "x.gguf").write_bytes(file_bytes([key("a", ARR, nested)]))
            with pytest.raises(FormatError, match="array of arrays"):
                read_gguf(tmp_path / "x.gguf")
    finally:
        sys.setrecursionlimit(before)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    paths, _ = gguf_files.write_tiny_gguf(tmp_path / "m.gguf", "qwen2")
    whole = paths[0].read_bytes()
    last = max(read_gguf(paths[0]).tensors.values(), key=lambda t: t.offset)
    end = last.offset + last.num_bytes
    cuts = sorted({*range(64), *(end * i // 900 for i in range(900)), end - 1})
    for cut in cuts:
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(QLocalError, match=r"cut\.gguf"):
            read_gguf(tmp_path / "cut.gguf")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_header_reads_or_is_refused_but_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        folder.mkdir()
        gguf_files.write_tiny_gguf(folder / "m.gguf", "qwen2")
    content = bytearray((folder / "m.gguf").read_bytes())
    header_bytes = min(t.offset for t in read_gguf(folder / "m.gguf").tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_bytes - 9))
        value = data.draw(st.sampled_from([0, 1, 255, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, 1 << 40]))
        width = data.draw(st.sampled_from([1, 4, 8]))
        content[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    (folder / "x.gguf").write_bytes(content)
    try:
        header = read_gguf(folder / "x.gguf")
    except QLocalError:
        return
    assert all(t.offset + t.num_bytes <= len(content) for t in header.tensors.values())


@settings(max_examples=300, deadline=None)
@given(dims=st.lists(st.integers(0, 1 << 62), min_size=1, max_size=4))
def test_dimensions_are_multiplied_exactly(dims: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "dims.gguf"
    content = file_bytes(infos=[info("a", dims)], data=bytes(4096))
    path.write_bytes(content)
    count = 1
    for dim in dims:
        count *= dim
    fits = count > 0 and all(d <= 1 << 40 for d in dims) and 4 * count <= 4096
    if fits:
        assert read_gguf(path).tensors["a"].num_bytes == 4 * count
    else:
        with pytest.raises(FormatError):
            read_gguf(path)


@pytest.mark.parametrize("alignment", [8, 16, 32, 64, 4096, 65536])
def test_other_alignments_are_honoured(tmp_path: Path, alignment: int) -> None:
    head = key("general.alignment", U32, struct.pack("<I", alignment))
    first = float_bytes(5)
    data = first + bytes(-len(first) % alignment) + float_bytes(3)
    infos = [info("a", [5]), info("b", [3], 0, -(-len(first) // alignment) * alignment)]
    (tmp_path / "x.gguf").write_bytes(file_bytes([head], infos, data, alignment=alignment))
    tensors = read_gguf(tmp_path / "x.gguf").tensors
    for name, count in (("a", 5), ("b", 3)):
        loaded = tensors[name].file.tensor(torch.float32, (count,), tensors[name].offset)
        assert torch.equal(loaded, torch.arange(count, dtype=torch.float32))


def test_a_file_of_the_gguf_package_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60_000)
    writer.add_int16("t.i16", -30_000)
    writer.add_uint32("t.u32", 1 << 31)
    writer.add_int32("t.i32", -(1 << 30))
    writer.add_float32("t.f32", 1.5)
    writer.add_bool("t.bool", True)
    writer.add_string("t.str", "Käfer 今天 😀")
    writer.add_uint64("t.u64", 1 << 63)
    writer.add_int64("t.i64", -(1 << 62))
    writer.add_float64("t.f64", 0.1)
    writer.add_array("t.strings", ["a", "", "Ġб", "😀" * 100])
    writer.add_array("t.ints", [1, -2, 3])
    values = np.random.default_rng(0).standard_normal((6, 256), dtype=np.float32)
    kinds = [gguf.GGMLQuantizationType[n] for n in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16")]
    expected = {}
    for kind in kinds:
        data = gguf.quants.quantize(values, kind)
        expected[kind.name] = data
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    writer.add_tensor("plain", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf(path)
    found = {name: value.value for name, value in header.metadata.items()}
    assert found["t.u8"] == 200 and found["t.i8"] == -100 and found["t.u16"] == 60_000 and found["t.i16"] == -30_000
    assert found["t.u32"] == 1 << 31 and found["t.i32"] == -(1 << 30) and found["t.f32"] == 1.5
    assert found["t.bool"] is True and found["t.str"] == "Käfer 今天 😀"
    assert found["t.u64"] == 1 << 63 and found["t.i64"] == -(1 << 62) and found["t.f64"] == 0.1
    assert found["t.strings"] == ["a", "", "Ġб", "😀" * 100] and found["t.ints"] == [1, -2, 3]
    assert header.metadata["t.strings"].element is ValueType.STRING
    for name, data in expected.items():
        tensor = header.tensors[name]
        assert tensor.shape == (6, 256) and tensor.ggml_type.name == name
        assert tensor.file.read(tensor.offset, tensor.num_bytes) == data.tobytes()
    assert header.tensors["plain"].shape == (256,)


def test_a_vocabulary_of_262144_tokens_is_read_within_a_second(tmp_path: Path) -> None:
    tokens = b"".join(string(f"token{i}") for i in range(262_144))
    merges = b"".join(string(f"to ken{i}") for i in range(262_144))
    keys = [
        key("tokenizer.ggml.tokens", ARR, struct.pack("<IQ", STR, 262_144) + tokens),
        key("tokenizer.ggml.merges", ARR, struct.pack("<IQ", STR, 262_144) + merges),
        key("tokenizer.ggml.token_type", ARR, struct.pack("<IQ", 5, 262_144) + bytes(4 * 262_144)),
        key("padding", STR, string("x" * (10 << 20))),  # so that the header is longer than the first read
    ]
    (tmp_path / "x.gguf").write_bytes(file_bytes(keys))
    start = time.process_time()
    header = read_gguf(tmp_path / "x.gguf")
    assert time.process_time() - start < 1
    assert header.metadata["tokenizer.ggml.tokens"].value[-1] == "token262143"


def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    keys = [key(f"k{i}", STR, string("y" * (9 << 20))) for i in range(2)]
    (tmp_path / "x.gguf").write_bytes(file_bytes([*keys, key("last", U32, TWO)], [F32_ROW], float_bytes(8)))
    header = read_gguf(tmp_path / "x.gguf")
    assert header.metadata["last"].value == 2 and "a" in header.tensors


def _split_files(folder: Path) -> list[Path]:
    paths, _ = gguf_files.write_tiny_gguf(folder / "m.gguf", "qwen2", max_shard_bytes=150_000)
    assert len(paths) > 2
    return paths


def test_parts_of_a_split_file_are_found_by_name(tmp_path: Path) -> None:
    paths = _split_files(tmp_path)
    header = read_gguf(paths[0])
    single, _ = gguf_files.write_tiny_gguf(tmp_path / "one.gguf", "qwen2")
    assert header.files == tuple(paths)
    assert set(header.tensors) == set(read_gguf(single[0]).tensors)


def test_a_later_part_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not the first part") as caught:
        read_gguf(_split_files(tmp_path)[1])
    assert caught.value.hint == "Give part 00001."


def test_broken_split_files_are_refused(tmp_path: Path) -> None:
    paths = _split_files(tmp_path)
    second = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(FormatError, match=r"00002-of-.*cannot be opened"):
        read_gguf(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(FormatError, match="says it is part 2"):
        read_gguf(paths[0])
    paths[1].unlink()
    paths[1].hardlink_to(paths[0])
    with pytest.raises(FormatError, match="the same file as an earlier part"):
        read_gguf(paths[0])
    paths[1].unlink()
    paths[1].symlink_to(paths[1].name)
    with pytest.raises(FormatError):
        read_gguf(paths[0])
    paths[1].unlink()
    paths[1].write_bytes(second)
    paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match="the name must end in -00001-of-"):
        read_gguf(tmp_path / "renamed.gguf")


def test_parts_of_another_model_are_refused(tmp_path: Path) -> None:
    paths = _split_files(tmp_path)
    count = len(paths)
    keys = [
        key("split.no", 2, struct.pack("<H", 1)),
        key("split.count", 2, struct.pack("<H", count)),
        key("split.tensors.count", 5, struct.pack("<i", 99)),
    ]
    paths[1].write_bytes(file_bytes(keys, [F32_ROW], float_bytes(8)))
    with pytest.raises(FormatError, match=r"split\.tensors\.count is \d+, the \d parts hold"):
        read_gguf(paths[0])


def test_a_split_count_of_65535_is_refused(tmp_path: Path) -> None:
    keys = [key("split.no", 2, struct.pack("<H", 0)), key("split.count", 2, struct.pack("<H", 65535))]
    path = tmp_path / "m-00001-of-65535.gguf"
    path.write_bytes(file_bytes(keys))
    with pytest.raises(FormatError, match="at most 1024 parts"):
        read_gguf(path)
