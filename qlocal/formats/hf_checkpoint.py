"""A Hugging Face folder as a checkpoint: BF16 (or F16, F32), AWQ or GPTQ.

`_inventory` finds the stored parts of every tensor of the architecture's table, under any of its spellings, and
gathers all problems, so that one error tells them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.errors import CheckpointError
from qlocal.formats import hf_folder
from qlocal.formats.base import (
    MAX_PROBLEMS,
    WHOLE,
    GenerationDefaults,
    Region,
    StoredTensor,
    TokenizerData,
    too_many_problems,
)
from qlocal.formats.mapped_file import MappedFile
from qlocal.formats.quantization_config import QuantizationConfig, parse_quantization_config
from qlocal.formats.safetensors_file import TensorInfo
from qlocal.models import by_model_type
from qlocal.models.base import Architecture, ModelConfig, Role, TensorSpec
from qlocal.models.config_fields import parse_config

if TYPE_CHECKING:
    import torch

    from qlocal.weights import DenseWeight, Weight

_FLOATS = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_IGNORED = (".rotary_emb.inv_freq", ".self_attn.masked_bias")
"""Buffers that old tools saved although they follow from the configuration."""


@dataclass(frozen=True)
class _Parts:
    """The stored tensors of one tensor of the table, by part (`weight` alone when dense).

    rows: the rows of a fused tensor that belong to it, after taking `expert`.
    """

    stored: StoredTensor
    infos: Mapping[str, TensorInfo]
    expert: int | None = None
    rows: slice | None = None


@dataclass(eq=False)
class HfCheckpoint:
    """See `formats.base.Checkpoint`."""

    path: Path
    format: str
    architecture: Architecture
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    quantization: QuantizationConfig | None
    parts: Mapping[str, _Parts]

    def read(self, name: str, region: Region = WHOLE) -> Weight:
        parts = self.parts[name]
        if parts.stored.storage in ("awq", "gptq"):
            return self._read_codes(parts, region)
        return _read_dense(parts, region)

    def will_read(self, name: str) -> None:
        for info in self.parts[name].infos.values():
            info.file.will_read(info.offset, info.num_bytes)

    def _read_codes(self, parts: _Parts, region: Region) -> Weight:
        from qlocal.formats import awq, gptq, regions  # import torch, and opening does without

        settings, columns = self._settings(parts), parts.stored.shape[1]
        where = f"{parts.infos['qweight'].file.path.name}: {parts.stored.spec.module}"
        loaded = {part: info.load() for part, info in parts.infos.items()}
        g_idx = gptq.column_groups(loaded.pop("g_idx", None), columns, settings.groups(columns), where)
        cut = regions.CodeRegion.of(region, parts.stored, is_permuted=g_idx is not None)
        stored = cut.parts(loaded)
        if settings.method == "awq":
            return cut.weight(awq.decode(**stored, group_size=cut.group_size), None)
        return cut.weight(gptq.decode(**stored, g_idx=None, config=settings, where=where), g_idx)

    def _settings(self, parts: _Parts) -> QuantizationConfig:
        settings = None if self.quantization is None else self.quantization.of(parts.stored.spec)
        assert settings is not None, "codes are looked for only where the quantization_config says so"
        return settings

    def tokenizer(self) -> TokenizerData:
        return hf_folder.read_tokenizer(self.path)

    def generation_defaults(self) -> GenerationDefaults:
        return hf_folder.read_generation_defaults(self.path, self.config.vocab_size, self.config.eos_token_ids)


def open_folder(folder: Path) -> HfCheckpoint:
    """Open a folder; see `checkpoint.open_checkpoint`."""
    raw = hf_folder.read_config(folder)
    where = "config.json"
    model_type = raw.get("model_type")
    architecture = by_model_type(str(model_type)[:60], where=where)
    config = parse_config(raw, architecture, where)
    quantization = parse_quantization_config(raw.get("quantization_config"), where)
    found, shards = hf_folder.read_shards(folder)
    parts = _Inventory(found, quantization, config).match(architecture, folder)
    # Opened once, also those that nobody reads: they are hashed, and a FIFO would hold whoever does.
    beside = [MappedFile(folder / name).path for name in _METADATA_FILES if (folder / name).exists()]
    return HfCheckpoint(
        path=folder,
        format=quantization.method if quantization else "bf16",
        architecture=architecture,
        config=config,
        tensors={name: p.stored for name, p in parts.items()},
        files=(*shards, *beside),
        quantization=quantization,
        parts=parts,
    )


_METADATA_FILES = (
    "config.json",
    hf_folder.INDEX_NAME,
    "quantize_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class _Inventory:
    """Matches what lies in the shards with what the table asks for."""

    def __init__(
        self, found: Mapping[str, TensorInfo], quantization: QuantizationConfig | None, config: ModelConfig
    ) -> None:
        self._found = found
        self._quantization = quantization
        self._config = config
        self._used: set[str] = set()
        self._problems: list[str] = []

    def match(self, architecture: Architecture, folder: Path) -> dict[str, _Parts]:
        """Return the parts of every tensor of the table; CheckpointError lists everything that does not fit."""
        parts = {}
        for spec in architecture.tensors(self._config):
            found = self._locate(spec)
            if found is not None:
                parts[spec.name] = found
            if len(self._problems) > MAX_PROBLEMS:  # a config.json may speak of a million tensors that are not there
                raise too_many_problems(folder.name, self._config, self._problems)
        self._problems += [
            f"{name} is not part of a {self._config.model_type} model" for name in self._found if self._is_extra(name)
        ]
        problems = list(dict.fromkeys(self._problems))  # all experts of a fused tensor report the same one
        if problems:
            raise CheckpointError(
                f"{folder.name}: {len(problems)} tensors do not match the {self._config.model_type} table",
                problems,
                hint="The folder is incomplete, or config.json belongs to another model.",
            )
        return parts

    def _locate(self, spec: TensorSpec) -> _Parts | None:
        for name in (spec.name, *spec.aliases):
            module = name.rsplit(".", 1)[0]
            settings = None if self._quantization is None else self._quantization.of(spec)
            if settings is not None and f"{module}.qweight" in self._found:
                return self._quantized(spec, module, settings)
            if name in self._found:
                return self._dense(spec, self._found[name], spec.shape)
        fused = None if spec.expert is None else self._fused_tensor(spec)
        if fused is not None:
            return self._fused(spec, fused)
        self._problems.append(f"{spec.name} is missing")
        return None

    def _dense(
        self,
        spec: TensorSpec,
        info: TensorInfo,
        shape: tuple[int, ...],
        expert: int | None = None,
        rows: slice | None = None,
    ) -> _Parts | None:
        self._used.add(info.name)
        if info.dtype not in _FLOATS:
            self._problems.append(f"{info.name} is {info.dtype}, expected BF16, F16 or F32")
            return None
        if info.shape != shape:
            self._problems.append(f"{info.name} has shape {info.shape}, expected {shape}")
            return None
        num_bytes = info.num_bytes // _product(shape) * _product(spec.shape)
        return _Parts(StoredTensor(spec, _FLOATS[info.dtype], num_bytes), {"weight": info}, expert, rows)

    def _fused_tensor(self, spec: TensorSpec) -> TensorInfo | None:
        """Return transformers 5's fused tensor that holds this expert: gate_up_proj (E, 2F, D) or down_proj."""
        part = "down_proj" if spec.role is Role.DOWN else "gate_up_proj"
        for block in ("block_sparse_moe", "mlp"):
            info = self._found.get(f"model.layers.{spec.layer}.{block}.experts.{part}")
            if info is not None:
                return info
        return None

    def _fused(self, spec: TensorSpec, info: TensorInfo) -> _Parts | None:
        rows, columns = spec.shape
        if spec.role is Role.DOWN:
            return self._dense(spec, info, (self._config.num_experts, rows, columns), spec.expert)
        half = slice(0, rows) if spec.role is Role.GATE else slice(rows, 2 * rows)  # gate stands before up
        return self._dense(spec, info, (self._config.num_experts, 2 * rows, columns), spec.expert, half)

    def _quantized(self, spec: TensorSpec, module: str, settings: QuantizationConfig) -> _Parts | None:
        rows, columns = spec.shape
        group_size = settings.groups(columns)
        if columns % group_size or rows % 8 or columns % 8:
            self._problems.append(
                f"{module} has shape {spec.shape}, which groups of {group_size} and words of 8 codes cannot cover"
            )
            return None
        infos, before = {}, len(self._problems)
        for part, (dtypes, shape) in expected_parts(settings.method, rows, columns, group_size).items():
            info = self._found.get(f"{module}.{part}")
            if info is None:
                if part != "g_idx":  # readers take k // group_size then
                    self._problems.append(f"{module}.{part} is missing")
                continue
            self._used.add(info.name)
            infos[part] = info
            if info.shape != shape:
                self._problems.append(f"{info.name} has shape {info.shape}, expected {shape}")
            elif info.dtype not in dtypes:
                self._problems.append(f"{info.name} is {info.dtype}, expected {' or '.join(dtypes)}")
        if len(self._problems) > before:
            return None
        stored = StoredTensor(
            spec,
            settings.method,
            sum(info.num_bytes for info in infos.values()),
            group_size=group_size,
            has_g_idx="g_idx" in infos,
        )
        return _Parts(stored, infos)

    def _is_extra(self, name: str) -> bool:
        if name in self._used or name.endswith(_IGNORED):
            return False
        if name == "lm_head.weight" and self._config.tie_word_embeddings:
            return False
        return not self._is_zero_bias(name)

    def _is_zero_bias(self, name: str) -> bool:
        """Whether this is the bias of only zeros that AutoGPTQ gave every quantized linear."""
        info = self._found[name]
        is_bias = name.endswith(".bias") and f"{name[:-5]}.qweight" in self._used and info.dtype in _FLOATS
        return is_bias and info.num_bytes <= 1 << 20 and not any(info.file.read(info.offset, info.num_bytes))


def expected_parts(
    method: str, rows: int, columns: int, group_size: int
) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return dtypes and shape of every stored part of an (N, K) linear."""
    groups = columns // group_size
    ints, floats = ("I32",), ("F16", "BF16")
    parts: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "qweight": (ints, (columns, rows // 8) if method == "awq" else (columns // 8, rows)),
        "qzeros": (ints, (groups, rows // 8)),
        "scales": (floats, (groups, rows)),
    }
    if method == "gptq":
        parts["g_idx"] = (ints, (columns,))
    return parts


def _read_dense(parts: _Parts, region: Region) -> DenseWeight:
    from qlocal.formats import regions  # imports torch, see above
    from qlocal.weights import DenseWeight

    data: torch.Tensor = parts.infos["weight"].load()
    if parts.expert is not None:
        data = data[parts.expert]
    return DenseWeight(regions.cut(data if parts.rows is None else data[parts.rows], region))


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count
