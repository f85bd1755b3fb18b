"""`--target-size`: how many bytes of a GGUF file are left for its tensors, which types they get, what is said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlocal.formats.type_mix import choose_types
from qlocal.ggml_types import GgmlType
from quantize.assemble import gguf_file_bytes
from quantize.options import GGUF_TYPES, Options
from quantize.recipe import Recipe
from quantize.source import PaddedSource
from quantize.type_choice import Sensitivity, check_room, choose


@dataclass(frozen=True)
class Sized:
    """What was chosen. types: by GGUF name; sentence: for the report."""

    types: dict[str, GgmlType]
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return {"types": {name: t.name for name, t in self.types.items()}, "sentence": self.sentence}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Sized:
        return cls({name: GgmlType[t] for name, t in values["types"].items()}, values["sentence"])


def check_target_size(recipe: Recipe, source: PaddedSource, name: str, options: Options) -> None:
    """Raise PlanError when the smallest file is larger than --target-size."""
    if options.target_size is not None:
        check_room(gguf_file_bytes(recipe, source, name, recipe.targets[0]), options.target_size)


def choose_for_size(
    recipe: Recipe,
    source: PaddedSource,
    name: str,
    target_size: int,
    sensitivities: Sequence[Sensitivity],
) -> Sized:
    """Choose the types of measured tensors. recipe: of the smallest file, with which they were measured."""
    smallest = gguf_file_bytes(recipe, source, name, recipe.targets[0])
    fixed = smallest - sum(s.num_bytes(s.measured) for s in sensitivities)  # what types do not change
    choice = choose(sensitivities, target_size - fixed)
    return Sized(choice.types, _sentence(recipe, sensitivities, choice.types))


def _sentence(recipe: Recipe, sensitivities: Sequence[Sensitivity], types: dict[str, GgmlType]) -> str:
    """Return how many tensors got each type, and what is expected of that beside the named mixes."""
    counts = Counter(types.values())
    listed = ", ".join(f"{count} {t.name}" for t, count in counts.most_common())
    num_bytes, kl = _expected(sensitivities, types)
    words = f"Types by what each tensor was measured to be worth: {listed}; expected to add a mean KL of {kl:.4f}"
    named = []
    for mix in GGUF_TYPES:
        of_mix = choose_types(recipe.architecture, recipe.config, mix, has_imatrix=True)
        size, mix_kl = _expected(sensitivities, {s.name: of_mix[s.name] for s in sensitivities})
        named.append((abs(size - num_bytes), size, mix_kl, mix))
    _, size, mix_kl, mix = min(named)
    return f"{words}, {mix} with {100 * size / num_bytes:.1f} % of the bytes {mix_kl:.4f}."


def _expected(sensitivities: Sequence[Sensitivity], types: dict[str, GgmlType]) -> tuple[int, float]:
    chosen = [(s, types[s.name]) for s in sensitivities]
    return sum(s.num_bytes(t) for s, t in chosen), sum(s.kl_as(t) for s, t in chosen)
