"""A checkpoint that lives in memory: what `formats` would return, without a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlocal.formats import regions
from qlocal.formats.base import WHOLE, GenerationDefaults, Region, StoredTensor, TokenizerData
from qlocal.models import ARCHITECTURES
from qlocal.weights import DenseWeight, Weight
from tests import tiny


class MemoryCheckpoint:
    """Tiny seeded weights of `model_type`; `weights` may replace tensors by name."""

    def __init__(self, model_type: str, overrides: Mapping[str, Any] | None = None, seed: int = 0) -> None:
        self.path = Path(model_type)
        self.format = "bf16"
        self.architecture = ARCHITECTURES[model_type]
        self.config = tiny.tiny_config(model_type, overrides)
        self.values: dict[str, Tensor] = tiny.tiny_tensors(model_type, self.config, seed)
        self.weights: dict[str, Weight] = {name: DenseWeight(value) for name, value in self.values.items()}
        self.tensors = {
            spec.name: StoredTensor(spec, "bf16", self.values[spec.name].nbytes)
            for spec in self.architecture.tensors(self.config)
        }
        self.files: tuple[Path, ...] = ()

    def read(self, name: str, region: Region = WHOLE) -> Weight:
        weight = self.weights[name]
        if region == WHOLE:
            return weight
        assert isinstance(weight, DenseWeight) and weight.row_map is None, "files show how the others are cut"
        return DenseWeight(regions.cut(weight.data, region))

    def will_read(self, name: str) -> None:
        pass  # it is in memory

    def tokenizer(self) -> TokenizerData:
        return TokenizerData(tokenizer_json=tiny.tiny_tokenizer().to_str().encode())

    def generation_defaults(self) -> GenerationDefaults:
        return GenerationDefaults(stop_ids=self.config.eos_token_ids)


def random_ids(config_vocab: int, count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, config_vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
