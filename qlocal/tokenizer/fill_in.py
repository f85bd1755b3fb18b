"""Filling in: the control tokens by which a model is asked for what stands between two texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5, its Coder models were trained with them
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder and those who took over its vocabulary
)
_ENDS = ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<fim_pad>", "<file_sep>", "<|endoftext|>")
"""What models write when the middle is complete."""


@dataclass(frozen=True)
class FillIn:
    """begin_ids: what stands before every text of the model. stop_ids: what ends the middle."""

    prefix_id: int
    suffix_id: int
    middle_id: int
    stop_ids: tuple[int, ...]
    begin_ids: tuple[int, ...] = ()


def find(ids_by_text: Mapping[str, int], begin_ids: Sequence[int]) -> FillIn | None:
    """Return the tokens of the first family that a vocabulary has whole."""
    for names in _FAMILIES:
        if all(name in ids_by_text for name in names):
            prefix_id, suffix_id, middle_id = (ids_by_text[name] for name in names)
            ends = {ids_by_text[name] for name in (*_ENDS, *names) if name in ids_by_text}
            return FillIn(prefix_id, suffix_id, middle_id, tuple(sorted(ends)), tuple(begin_ids))
    return None
