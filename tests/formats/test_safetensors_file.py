"""Hostile safetensors headers are refused by name, and what we write the library reads."""

import json
import os
import resource
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qlocal.errors import FormatError, PlanError
from qlocal.formats.safetensors_file import read_header
from qlocal.formats.safetensors_writer import SafetensorsWriter, Shard, TensorEntry, index_json, plan_shards


def _file(path: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def _entry(begin: int = 0, end: int = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[bytes | dict[str, Any], bytes, str]] = {
    "no JSON": (b"{]", b"", "not valid JSON"),
    "not an object": (b"[1]", b"", "expected an object"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8"),
    "deep": (b'{"a":' * 50_000, b"", "nested too deeply|not valid JSON"),
    "NaN": (b'{"a": NaN}', b"", "NaN is not a number"),
    "too large a number": (b'{"a": 1e999}', b"", "out of range"),
    "a number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", b"", "not valid JSON"),
    "half a surrogate": (b'{"\\ud800": 1}', b"", "surrogate"),
    "duplicate names": (b'{"a": {}, "a": {}}', b"", "'a' appears twice"),
    "escape in the name": ({"a\x1b[31m": _entry()}, bytes(8), "not printable"),
    "empty name": ({"": _entry()}, bytes(8), "empty"),
    "no fields": ({"a": {}}, b"", "needs dtype, shape and data_offsets"),
    "no object": ({"a": 3}, b"", "needs dtype, shape and data_offsets"),
    "unknown dtype": ({"a": _entry(dtype="F7")}, bytes(8), "dtype 'F7' is unknown"),
    "dtype no text": ({"a": _entry(dtype=["F32"])}, bytes(8), "is unknown"),
    "negative dim": ({"a": _entry(shape=(-2,))}, bytes(8), "shape is not"),
    "bool dim": ({"a": _entry(shape=(True, 2))}, bytes(8), "shape is not"),
    "float dim": ({"a": _entry(shape=(2.0,))}, bytes(8), "shape is not"),
    "nine dims": ({"a": _entry(shape=(1,) * 8 + (2,))}, bytes(8), "at most 8"),
    "dims that overflow": ({"a": _entry(shape=(1 << 40, 1 << 40))}, bytes(8), "takes"),
    "negative offset": ({"a": _entry(-8, 0)}, bytes(8), "data_offsets is not"),
    "reversed offsets": ({"a": _entry(8, 0)}, bytes(8), "data_offsets span"),
    "too many bytes": ({"a": _entry(0, 9)}, bytes(9), "data_offsets span 9"),
    "beyond the file": ({"a": _entry(0, 8)}, bytes(4), "describes"),
    "bytes behind": ({"a": _entry(0, 8)}, bytes(12), "describes"),
    "hole": ({"a": _entry(0, 8), "b": _entry(16, 24)}, bytes(24), "hole"),
    "hole in front": ({"a": _entry(8, 16)}, bytes(16), "hole"),
    "overlap": ({"a": _entry(0, 8), "b": _entry(4, 12)}, bytes(12), "overlaps"),
    "the same bytes twice": ({"a": _entry(0, 8), "b": _entry(0, 8)}, bytes(8), "overlaps"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_by_name(tmp_path: Path, case: str) -> None:
    header, data, message = HOSTILE[case]
    with pytest.raises(FormatError, match=message) as caught:
        read_header(_file(tmp_path / "x.safetensors", header, data))
    assert "x.safetensors" in caught.value.message


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, (32 << 20) + 1, 100])
def test_a_length_that_lies_is_refused_without_reading(tmp_path: Path, length: int) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError, match="header of"):
        read_header(_file(tmp_path / "x.safetensors", b"{}", length=length))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_file_of_any_length_below_its_own_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "x.safetensors", {"a": _entry(0, 8), "b": _entry(8, 16)}, bytes(16))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_header(path)


def test_too_many_tensors_are_refused_quickly(tmp_path: Path) -> None:
    body = ",".join(f'"{i}":0' for i in range(262_145))
    path = _file(tmp_path / "x.safetensors", b"{" + body.encode() + b"}")
    start = time.process_time()
    with pytest.raises(FormatError, match="at most 262144"):
        read_header(path)
    assert time.process_time() - start < 2


def test_a_fifo_a_folder_and_a_strange_link_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "dir.safetensors").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "secret")
    for name, message in [("fifo", "not a regular"), ("dir", "not a regular"), ("link", "is a link to")]:
        with pytest.raises(FormatError, match=message):
            read_header(tmp_path / f"{name}.safetensors")


def test_tensors_of_every_dtype_are_views_with_the_right_values(tmp_path: Path) -> None:
    tensors = {
        str(d): torch.arange(12).view(3, 4).to(d)
        for d in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.int8)
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    for name, expected in tensors.items():
        assert torch.equal(found[name].load(), expected)


def test_a_tensor_at_an_odd_offset_is_read(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.25])
    header = {"a": _entry(0, 3, "U8", (3,)), "b": _entry(3, 11)}
    path = _file(tmp_path / "x.safetensors", header, b"\1\2\3" + values.numpy().tobytes())
    assert torch.equal(read_header(path)["b"].load(), values)


def test_a_written_file_is_read_by_the_library_and_by_us(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a": torch.randn(7).to(torch.float16),
        "c": torch.arange(24, dtype=torch.int32).view(2, 12).T,
    }
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}
    entries = {n: TensorEntry(names[t.dtype], tuple(t.shape)) for n, t in tensors.items()}
    writer = SafetensorsWriter(tmp_path / "x.safetensors", entries)
    for name in ("c", "a", "b"):  # any order
        writer.write(name, tensors[name])
    writer.close()
    by_library = load_file(tmp_path / "x.safetensors")
    by_us = read_header(tmp_path / "x.safetensors")
    for name, expected in tensors.items():
        assert torch.equal(by_library[name], expected) and torch.equal(by_us[name].load(), expected)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_unfinished_file_cannot_be_closed_as_complete(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"a": TensorEntry("F32", (2,))})
    with pytest.raises(AssertionError, match="never written: a"):
        writer.close()
    writer.abandon()


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(PlanError, match=r"x\.safetensors: cannot be written: File too large"):
            SafetensorsWriter(tmp_path / "x.safetensors", {"a": TensorEntry("F32", (2000,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_shards_keep_the_order_and_the_limit() -> None:
    entries = {f"t{i}": TensorEntry("F32", (100,)) for i in range(7)} | {"big": TensorEntry("F32", (1000,))}
    shards = plan_shards(entries, 900)
    assert [list(s.entries) for s in shards] == [["t0", "t1"], ["t2", "t3"], ["t4", "t5"], ["t6"], ["big"]]
    assert shards[0].name == "model-00001-of-00005.safetensors"
    index = json.loads(index_json(shards))
    assert index["weight_map"]["big"] == "model-00005-of-00005.safetensors"
    assert index["metadata"]["total_size"] == 4 * 1700
    assert plan_shards(entries, 1 << 30) == [Shard("model.safetensors", entries)]
