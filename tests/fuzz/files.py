"""Files as a liar writes them, byte by byte: with a share of 0 each is valid, and must be read as it was meant."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from qlocal.formats.gguf_values import SCALAR_CODES, ValueType, padded
from qlocal.formats.safetensors_file import ITEM_SIZES
from qlocal.ggml_types import LAYOUTS, GgmlType
from tests.fuzz.lies import Liar

TEXTS = ("", "a", "Ġthe", "今天", "😀" * 3, "x" * 40)
TYPES = tuple(GgmlType)
DTYPES = tuple(ITEM_SIZES)
ARRAY_ELEMENTS = tuple(kind for kind in ValueType if kind is not ValueType.ARRAY)


@dataclass(frozen=True)
class Tensor:
    """One tensor as it was meant. shape: as the reader tells it; offset: from the start of the data."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Written:
    """A file, and what it says when nobody lies."""

    content: bytes
    tensors: tuple[Tensor, ...]
    values: dict[str, Any]


def gguf(liar: Liar) -> Written:
    """Return a GGUF file of a few keys and tensors."""
    rng, values = liar.rng, {}
    keys = []
    alignment = rng.choice((8, 32, 32, 32, 64, 4096))
    if alignment != 32:
        keys.append(_string(liar, "general.alignment") + liar.u32(ValueType.UINT32) + liar.u32(alignment))
    for index in range(rng.randrange(5)):
        name = f"k.{index}"
        data, values[name] = _value(liar)
        keys.append(_string(liar, name) + data)
    infos, tensors, offset = [], [], 0
    for index in range(rng.randrange(5)):
        tensor = _gguf_tensor(liar, f"blk.{index}.weight", offset)
        infos.append(_info(liar, tensor))
        tensors.append(tensor)
        offset = padded(offset + tensor.num_bytes, alignment)
    if liar.lies():
        infos.append(rng.choice(infos or keys or [b""]))
    head = liar.name("GGUF")[:4] + liar.u32(rng.choice((2, 3))) + liar.u64(len(infos)) + liar.u64(len(keys))
    head += b"".join(keys) + b"".join(infos)
    head += bytes(padded(len(head), alignment) - len(head))
    return Written(liar.damaged(head + rng.randbytes(min(offset, 1 << 16))), tuple(tensors), values)


def _string(liar: Liar, text: str) -> bytes:
    data = liar.name(text)
    return liar.u64(len(data)) + data


def _value(liar: Liar) -> tuple[bytes, Any]:
    kind = liar.rng.choice(tuple(ValueType))
    if kind is not ValueType.ARRAY:
        data, value = _element(liar, kind)
        return liar.u32(kind) + data, value
    element = liar.rng.choice(ARRAY_ELEMENTS)
    parts = [_element(liar, element) for _ in range(liar.rng.randrange(4))]
    head = liar.u32(kind) + liar.u32(element) + liar.u64(len(parts))
    return head + b"".join(data for data, _ in parts), [value for _, value in parts]


def _element(liar: Liar, kind: ValueType) -> tuple[bytes, Any]:
    if kind is ValueType.STRING:
        text = liar.rng.choice(TEXTS)
        return _string(liar, text), text
    code = SCALAR_CODES[kind]
    if code == "?":
        value: Any = liar.rng.random() < 0.5
    elif code in "fd":
        value = liar.rng.choice((0.0, 1.5, -2.25, 1e30 if code == "d" else 0.5))
    else:
        value = liar.rng.choice((0, 1, 100))
    return struct.pack("<" + code, value), value


def _gguf_tensor(liar: Liar, name: str, offset: int) -> Tensor:
    kind = liar.rng.choice(TYPES)
    layout = LAYOUTS[kind]
    blocks = liar.rng.randrange(1, 4)
    rows = [liar.rng.randrange(1, 4) for _ in range(liar.rng.randrange(4))]
    num_bytes = blocks * layout.block_bytes
    for count in rows:
        num_bytes *= count
    return Tensor(name, kind.name, (*rows, blocks * layout.block_size), offset, num_bytes)


def _info(liar: Liar, tensor: Tensor) -> bytes:
    dims = tensor.shape[::-1]
    data = _string(liar, tensor.name) + liar.u32(len(dims)) + b"".join(map(liar.u64, dims))
    return data + liar.u32(GgmlType[tensor.kind]) + liar.u64(tensor.offset)


def safetensors(liar: Liar) -> Written:
    """Return a safetensors file; dtypes of all kinds, empty tensors and scalars too."""
    rng, tensors, offset = liar.rng, [], 0
    entries = []
    for index in range(rng.randrange(6)):
        dtype = rng.choice(DTYPES)
        shape = tuple(rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.randrange(4)))
        num_bytes = ITEM_SIZES[dtype]
        for dim in shape:
            num_bytes *= dim
        tensors.append(Tensor(f"layers.{index}", dtype, shape, offset, num_bytes))
        entries.append((liar.name(tensors[-1].name).decode("utf-8", "replace"), _entry(liar, tensors[-1])))
        offset += num_bytes
    rng.shuffle(entries)
    if entries and liar.lies():
        entries.append(rng.choice(entries))
    if rng.random() < 0.5:
        entries.append(("__metadata__", {"format": "pt"}))
    text = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries) + "}"
    head = liar.damaged(text.encode() + b" " * rng.randrange(8))
    return Written(liar.damaged(liar.u64(len(head)) + head + rng.randbytes(offset)), tuple(tensors), {})


def _entry(liar: Liar, tensor: Tensor) -> Any:
    entry: dict[str, Any] = {
        "dtype": liar.value(tensor.kind),
        "shape": liar.value([liar.number(dim) for dim in tensor.shape]),
        "data_offsets": liar.value([liar.number(tensor.offset), liar.number(tensor.offset + tensor.num_bytes)]),
    }
    if liar.lies():
        entry.pop(liar.rng.choice(tuple(entry)))
    return liar.value(entry)
