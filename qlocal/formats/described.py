"""A checkpoint that is not here: what one of a format would hold, from the geometry alone.

Sizes are those of the files that `quantize` writes, so that a plan can be made before anything is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NoReturn

from qlocal.errors import FormatError, UsageError
from qlocal.formats.base import WHOLE, Region, StoredTensor
from qlocal.formats.hf_checkpoint import expected_parts
from qlocal.formats.type_mix import MIXES, choose_types
from qlocal.ggml_types import row_bytes
from qlocal.models.base import Architecture, ModelConfig, Role, TensorSpec

FFN_MULTIPLE = 256
"""The super-block of the K-quants, and two groups of 128: a split over two cards cuts no group."""
GROUP_SIZES = (128, 64, 32)
TYPES = ("awq", "gptq", "bf16", *(name for name in MIXES if name not in ("bf16", "f16", "f32")))
_ITEM_BYTES = {"I32": 4, "F16": 2}


@dataclass(frozen=True)
class Description:
    """What a file would be. type: of TYPES. pads_ffn: to a multiple of FFN_MULTIPLE. quantizes_head: AWQ and GPTQ."""

    type: str
    group_size: int = 128
    pads_ffn: bool = True
    quantizes_head: bool = False


@dataclass(eq=False)
class DescribedCheckpoint:
    """See `formats.base.Checkpoint`; nothing of it can be read."""

    path: Path
    format: str
    architecture: Architecture
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...] = ()

    def read(self, name: str, region: Region = WHOLE) -> NoReturn:
        raise FormatError(f"{self.path.name} is not here, {name} cannot be read", hint="Get it with `qlocal pull`.")

    def will_read(self, name: str) -> NoReturn:
        self.read(name)

    def tokenizer(self) -> NoReturn:
        self.read("its tokenizer")

    def generation_defaults(self) -> NoReturn:
        self.read("its generation config")


def describe(
    name: str, architecture: Architecture, config: ModelConfig, description: Description
) -> DescribedCheckpoint:
    """Return what a checkpoint called `name` would hold. UsageError for a type that does not exist or cannot be."""
    kind = description.type
    if kind not in TYPES:
        raise UsageError(f"type '{kind[:40]}' is unknown", hint=f"Known: {', '.join(TYPES)}.")
    if description.pads_ffn and kind != "bf16":
        width = -(-config.intermediate_size // FFN_MULTIPLE) * FFN_MULTIPLE
        config = replace(config, intermediate_size=width)
    if kind in ("awq", "gptq"):
        config = replace(config, tie_word_embeddings=config.tie_word_embeddings and not description.quantizes_head)
        tensors = list(_folder(architecture, config, description))
    elif kind == "bf16":
        tensors = [_dense(spec, "bf16") for spec in architecture.tensors(config)]
    else:
        tensors = list(_blocks(architecture, config, kind))
    form = kind if kind in ("awq", "gptq", "bf16") else "gguf"
    return DescribedCheckpoint(Path(name), form, architecture, config, {s.spec.name: s for s in tensors})


def _folder(architecture: Architecture, config: ModelConfig, description: Description) -> Iterator[StoredTensor]:
    group_size = _fitting_group_size(architecture, config, description.group_size)
    for spec in architecture.tensors(config):
        if spec.is_quantized or (description.quantizes_head and spec.role is Role.HEAD):
            yield _codes(spec, description.type, group_size)
        else:
            yield _dense(spec, "f16")


def _fitting_group_size(architecture: Architecture, config: ModelConfig, wanted: int) -> int:
    widths = {spec.shape[1] for spec in architecture.tensors(config) if spec.is_quantized}
    fitting = (size for size in GROUP_SIZES if size <= wanted and all(width % size == 0 for width in widths))
    found = next(fitting, None)
    if found is None:
        shown = ", ".join(map(str, sorted(widths)))
        raise UsageError(f"no group size up to {wanted} divides the widths {shown}", hint="Choose a GGUF type.")
    return found


def _codes(spec: TensorSpec, method: str, group_size: int) -> StoredTensor:
    rows, columns = spec.shape
    parts = expected_parts(method, rows, columns, group_size).values()
    num_bytes = sum(_ITEM_BYTES[dtypes[0]] * prod(shape) for dtypes, shape in parts)
    return StoredTensor(spec, method, num_bytes, group_size=group_size)


def _dense(spec: TensorSpec, storage: str) -> StoredTensor:
    return StoredTensor(spec, storage, 2 * prod(spec.shape))


def _blocks(architecture: Architecture, config: ModelConfig, mix: str) -> Iterator[StoredTensor]:
    types = choose_types(architecture, config, mix, has_imatrix=True)
    for spec in architecture.tensors(config):
        ggml_type = types[spec.gguf_name]
        num_bytes = prod(spec.shape[:-1]) * row_bytes(ggml_type, spec.shape[-1])
        yield StoredTensor(spec, ggml_type.name.lower(), num_bytes, ggml_type)
