"""Assembling a result from its finished units: an AWQ or GPTQ folder, or a GGUF file, beside its final place."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qlocal
from qlocal.formats import hf_folder
from qlocal.formats.base import TokenizerData
from qlocal.formats.gguf_keys import model_keys, rope_factors, sampling_keys, tokenizer_keys
from qlocal.formats.gguf_metadata import ROPE_FREQS
from qlocal.formats.gguf_values import MetaValue
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from qlocal.formats.gguf_writer import GgufWriter, file_bytes
from qlocal.formats.mapped_file import copy_file
from qlocal.formats.quantization_config import awq_config_json, gptq_config_json
from qlocal.formats.safetensors_writer import SafetensorsWriter, index_json, plan_shards
from quantize.options import DAMP
from quantize.recipe import Recipe, Target, hf_entries
from quantize.source import PaddedSource
from quantize.state import Journal, disk_error, write_durably
from quantize.work_files import read_unit

COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Assembly:
    """What assembling needs: the plan, the source and the finished units. name: the model's, for GGUF metadata."""

    recipe: Recipe
    source: PaddedSource
    journal: Journal
    name: str
    shard_bytes: int
    rtn: bool

    def write(self, target: Target, path: Path) -> None:
        """Write `target` to `path`: a new folder, or a file."""
        if target.format == "gguf":
            self._write_gguf(target, path)
            return
        path.mkdir(parents=True)
        self._write_shards(target, path)
        write_durably(path / "config.json", _json(self._config(target)))
        if target.format == "gptq":
            write_durably(path / "quantize_config.json", _json(self._quantization(target)))
        copy_tokenizer(self.source.path, path)

    def _write_shards(self, target: Target, folder: Path) -> None:
        assert target.settings is not None, "folders have settings"
        entries = hf_entries(self.recipe.architecture, self.recipe.config, target.settings)
        shards = plan_shards(entries, self.shard_bytes)
        writers = {shard.name: SafetensorsWriter(folder / shard.name, shard.entries) for shard in shards}
        shard_of = {name: shard.name for shard in shards for name in shard.entries}
        try:
            for name, tensor in self._tensors(target):
                writers[shard_of[name]].write(name, tensor)
            for writer in writers.values():
                writer.close()
        finally:
            for writer in writers.values():
                writer.abandon()
        if len(shards) > 1:
            write_durably(folder / hf_folder.INDEX_NAME, index_json(shards))

    def _write_gguf(self, target: Target, path: Path) -> None:
        assert target.types is not None, "GGUF targets have a type for every tensor"
        metadata = gguf_metadata(self.recipe, self.source, self.name, target)
        writer = GgufWriter(path, metadata, list(target.types.values()))
        try:
            for name, tensor in self._tensors(target):
                shape = target.types[name].shape
                experts = shape[0] if len(shape) == 3 else 1
                for expert, part in enumerate(tensor.chunk(experts)):
                    writer.write(name, part, expert)
            factors = rope_factors(self.recipe.config)
            if factors is not None:
                writer.write(ROPE_FREQS, torch.tensor(factors, dtype=torch.float32))
            writer.close()
        finally:
            writer.abandon()

    def _tensors(self, target: Target) -> Iterator[tuple[str, Tensor]]:
        for unit in self.recipe.units:
            infos = read_unit(self.journal.folder, self.journal.units[unit].files[target.name])
            for name, info in infos.items():
                yield name, info.load()

    def _config(self, target: Target) -> dict[str, Any]:
        """Return the source's config.json with the padded FFN, the dtype of the rest, and how linears are stored."""
        raw = hf_folder.read_config(self.source.path)
        raw["intermediate_size"] = self.recipe.config.intermediate_size
        if self.recipe.config_of(target) != self.recipe.config:
            raw["tie_word_embeddings"] = False
        for key in ("dtype", "torch_dtype"):
            if key in raw:
                raw[key] = "float16"
        if "dtype" not in raw:
            raw["torch_dtype"] = "float16"
        raw["quantization_config"] = self._quantization(target)
        return raw

    def _quantization(self, target: Target) -> dict[str, Any]:
        assert target.settings is not None and target.settings.group_size is not None, "folders have settings"
        if target.format == "awq":
            not_converted = ["gate"] if self.recipe.architecture.is_moe else None
            quantizes_head = target.settings.head is not None
            return awq_config_json(target.settings.group_size, not_converted, quantizes_head=quantizes_head)
        group_aware = not target.settings.desc_act and not self.rtn
        quantizer = f"qlocal:{qlocal.__version__}"
        return gptq_config_json(target.settings, quantizer, damp_percent=DAMP, act_group_aware=group_aware)


def gguf_metadata(recipe: Recipe, source: PaddedSource, name: str, target: Target) -> dict[str, MetaValue]:
    """Return all keys of a GGUF result. name: the model's."""
    assert target.file_type is not None, "GGUF targets have one"
    keys = model_keys(recipe.architecture, recipe.config, name, target.file_type)
    return keys | sampling_keys(source.generation_defaults()) | tokenizer_metadata(source)


def gguf_file_bytes(recipe: Recipe, source: PaddedSource, name: str, target: Target) -> int:
    """Return how large the file of a GGUF result is."""
    assert target.types is not None, "GGUF targets have a type for every tensor"
    return file_bytes(gguf_metadata(recipe, source, name, target), list(target.types.values()))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Give a result the source's files of vocabulary, template and sampling, and no others of their names."""
    for name in COPIED:
        (folder / name).unlink(missing_ok=True)
        if (source / name).is_file():
            try:
                copy_file(source / name, folder / name)
            except OSError as error:
                raise disk_error(folder / name, error) from error


@functools.lru_cache(maxsize=1)  # checked before any work, written at its end
def tokenizer_metadata(source: PaddedSource) -> dict[str, MetaValue]:
    """Return the vocabulary keys of a GGUF file. TokenizerError when GGUF has no counterpart for the tokenizer."""
    data: TokenizerData = source.tokenizer()
    vocabulary = vocabulary_for_gguf(data, source.config, source.generation_defaults().stop_ids)
    return tokenizer_keys(vocabulary, data)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
