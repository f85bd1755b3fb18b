"""Importance that someone else has measured: a file of llama.cpp's, held against the tensors of the plan. No torch
before the values are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.errors import CheckpointError
from qlocal.formats.imatrix_file import ImatrixEntry, ImatrixFile, read_imatrix
from qlocal.formats.type_mix import is_head, is_linear
from qlocal.ggml_types import FLOAT_TYPES
from qlocal.models.base import Role, TensorSpec
from quantize.recipe import Recipe
from quantize.state import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

_NO_FEEDBACK = "GGUF is made by that importance alone, without texts and without error feedback."


class Importance:
    """The mean squares of a file for the tensors of a recipe. sha256: of the file."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        """Read `path`. CheckpointError names every tensor that is missing or has other columns than the model."""
        self._recipe = recipe
        self._file: ImatrixFile = read_imatrix(path)
        self.sha256 = file_sha256(path)
        specs = [s for s in recipe.architecture.tensors(recipe.config) if is_linear(s) and self._is_quantized(s)]
        problems = {problem: None for spec in specs if (problem := self._problem(spec)) is not None}
        if problems:
            raise CheckpointError(
                f"{path.name}: does not fit this model", list(problems), hint="Make it with this model's own GGUF file."
            )

    @property
    def sentence(self) -> str:
        """Say where the importance comes from, and what was not done."""
        chunks = "" if self._file.chunks is None else f", measured over {self._file.chunks} chunks of text"
        return f"Importance of {self._file.path.name} ({len(self._file.entries)} tensors{chunks}). {_NO_FEEDBACK}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Say which tensors the file knows nothing of."""
        name, notes = self._file.path.name, []
        for spec in self._recipe.architecture.tensors(self._recipe.config):
            entry = self._file.entries.get(spec.gguf_name)
            if entry is None and is_head(spec, self._recipe.config) and self._is_quantized(spec):
                notes.append(f"{name} holds no {spec.gguf_name}, which is fitted by its weights alone.")
            elif entry is not None and is_linear(spec) and not self._says(spec, entry):
                notes.append(f"{name} saw no token for {spec.module}, which is fitted by its weights alone.")
        return tuple(notes)

    def of(self, specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
        """Return (K,) f32 mean x² by the tensor's name in the model; nothing where the file knows nothing.

        Columns with which the FFN was padded have importance 0.
        """
        found = {spec: self._file.entries[spec.gguf_name] for spec in specs if spec.gguf_name in self._file.entries}
        return {spec.name: self._part(spec, entry) for spec, entry in found.items() if self._says(spec, entry)}

    def _is_quantized(self, spec: TensorSpec) -> bool:
        """Whether a GGUF result stores this tensor in blocks."""
        types = [target.types[spec.gguf_name] for target in self._recipe.targets if target.types is not None]
        return any(entry.ggml_type not in FLOAT_TYPES for entry in types)

    def _problem(self, spec: TensorSpec) -> str | None:
        """Return what is wrong with the entry of a tensor. Embedding and head may be missing: llama-imatrix looks at
        a head only when told to, and at an embedding never."""
        entry = self._file.entries.get(spec.gguf_name)
        if entry is None:
            return None if spec.layer is None else f"{spec.gguf_name} is missing"
        experts = 1 if spec.expert is None else self._recipe.config.num_experts
        widths = sorted({spec.shape[1], self._source_columns(spec)})
        if len(entry.values) in [experts * width for width in widths] and entry.parts in (1, experts):
            return None
        expected = " or ".join(f"{width:,}" for width in widths)
        each = f" for each of {experts} experts" if experts > 1 else ""
        return f"{spec.gguf_name} has {len(entry.values):,} values in {entry.parts} parts, expected {expected}{each}"

    def _source_columns(self, spec: TensorSpec) -> int:
        """Return the columns before padding, with which the file may have been made."""
        return self._recipe.source_config.intermediate_size if spec.role is Role.DOWN else spec.shape[1]

    def _says(self, spec: TensorSpec, entry: ImatrixEntry) -> bool:
        """Whether tokens reached this matrix; experts may share one count."""
        part = 0 if entry.parts == 1 else spec.expert or 0
        return is_linear(spec) and part not in entry.unseen

    def _part(self, spec: TensorSpec, entry: ImatrixEntry) -> Tensor:
        import torch  # heavy, and a dry run does without

        experts = 1 if spec.expert is None else self._recipe.config.num_experts
        values = torch.tensor(entry.values, dtype=torch.float32).view(experts, -1)[spec.expert or 0]
        padded = torch.zeros(spec.shape[1])
        padded[: len(values)] = values
        return padded
