"""A GGUF file (or the parts of a split one) as a checkpoint. Blocks stay as they lie in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.errors import CheckpointError
from qlocal.formats import gguf_metadata
from qlocal.formats.base import (
    MAX_PROBLEMS,
    WHOLE,
    GenerationDefaults,
    Region,
    StoredTensor,
    TokenizerData,
    too_many_problems,
)
from qlocal.formats.gguf_reader import GgufHeader, GgufTensor, read_gguf
from qlocal.ggml_types import FLOAT_TYPES, GgmlType, row_bytes
from qlocal.models.base import Architecture, ModelConfig, TensorSpec

if TYPE_CHECKING:
    import torch

    from qlocal.weights import Weight

_FLOAT_DTYPES = {GgmlType.F32: "float32", GgmlType.F16: "float16", GgmlType.BF16: "bfloat16"}


@dataclass(eq=False)
class GgufCheckpoint:
    """See `formats.base.Checkpoint`."""

    path: Path
    architecture: Architecture
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    header: GgufHeader
    format: str = "gguf"

    @classmethod
    def open(cls, path: Path) -> GgufCheckpoint:
        header = read_gguf(path)
        architecture, config = gguf_metadata.read_config(header)
        specs = _check_against_table(header, architecture, config)
        tensors = {spec.name: _stored(spec, header.tensors[spec.gguf_name]) for spec in specs}
        return cls(path, architecture, config, tensors, header.files, header)

    def read(self, name: str, region: Region = WHOLE) -> Weight:
        from qlocal.formats import regions  # imports torch, and opening does without
        from qlocal.weights import BlockWeight, DenseWeight

        spec = self.tensors[name].spec
        tensor = self.header.tensors[spec.gguf_name]
        row_map = regions.permuted_rows(spec, region.rows) if spec.permuted_heads else None
        if tensor.ggml_type in FLOAT_TYPES:
            return DenseWeight(regions.cut(_float_tensor(tensor, spec), region), row_map)
        columns = len(region.columns or range(spec.shape[-1]))
        blocks = regions.cut_blocks(_blocks(tensor, spec), region, tensor.ggml_type)
        return BlockWeight(blocks, tensor.ggml_type, columns, row_map)

    def will_read(self, name: str) -> None:
        stored = self.tensors[name]
        tensor = self.header.tensors[stored.spec.gguf_name]
        tensor.file.will_read(tensor.offset + (stored.spec.expert or 0) * stored.num_bytes, stored.num_bytes)

    def tokenizer(self) -> TokenizerData:
        return gguf_metadata.read_tokenizer(self.header)

    def generation_defaults(self) -> GenerationDefaults:
        return gguf_metadata.read_generation_defaults(self.header)


def _stored(spec: TensorSpec, tensor: GgufTensor) -> StoredTensor:
    num_bytes = row_bytes(tensor.ggml_type, spec.shape[-1])
    for dim in spec.shape[:-1]:
        num_bytes *= dim
    return StoredTensor(spec, tensor.ggml_type.name.lower(), num_bytes, tensor.ggml_type)


def stacked_shape(spec: TensorSpec, config: ModelConfig) -> tuple[int, ...]:
    """Return the shape that a GGUF file stores: experts of a layer stand in one tensor (E, N, K)."""
    return spec.shape if spec.expert is None else (config.num_experts, *spec.shape)


def _check_against_table(header: GgufHeader, architecture: Architecture, config: ModelConfig) -> list[TensorSpec]:
    """Return the architecture's tensors; CheckpointError lists what does not fit."""
    specs: list[TensorSpec] = []
    expected: dict[str, TensorSpec] = {}
    problems: list[str] = []
    for spec in architecture.tensors(config):
        specs.append(spec)
        if spec.gguf_name not in header.tensors and spec.gguf_name not in expected:
            problems.append(f"{spec.gguf_name} is missing")
        if len(problems) > MAX_PROBLEMS:  # the keys may speak of a million tensors that are not there
            raise too_many_problems(header.path.name, config, problems)
        expected[spec.gguf_name] = spec
    for name, tensor in header.tensors.items():
        wanted = expected.get(name)
        if wanted is None:
            if name != gguf_metadata.ROPE_FREQS:
                problems.append(f"{name} is not part of a {config.model_type} model")
        elif tensor.shape != stacked_shape(wanted, config):
            problems.append(f"{name} has shape {tensor.shape}, expected {stacked_shape(wanted, config)}")
        elif len(wanted.shape) == 1 and tensor.ggml_type not in FLOAT_TYPES:
            problems.append(f"{name} is {tensor.ggml_type.name}, expected F32, F16 or BF16")
    if problems:
        raise CheckpointError(
            f"{header.path.name}: {len(problems)} tensors do not match the {config.model_type} table", problems
        )
    return specs


def _float_tensor(tensor: GgufTensor, spec: TensorSpec) -> torch.Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, _FLOAT_DTYPES[tensor.ggml_type])
    data = tensor.file.tensor(dtype, tensor.shape, tensor.offset)
    return data if spec.expert is None else data[spec.expert]


def _blocks(tensor: GgufTensor, spec: TensorSpec) -> torch.Tensor:
    """Return (N, row_bytes) uint8, of one expert where several are stacked."""
    import torch

    width = row_bytes(tensor.ggml_type, spec.shape[-1])
    data = tensor.file.tensor(torch.uint8, (*tensor.shape[:-1], width), tensor.offset)
    return data if spec.expert is None else data[spec.expert]
