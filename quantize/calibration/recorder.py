"""Recording of layer inputs: statistics of every linear that is asked for, from the layer's own forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.models.base import ModelConfig, Role
from quantize.methods.base import Statistics

Key = tuple[Role, int | None]
"""Which input: the role that `Observe` names, and the expert."""

INPUT_OF = {Role.Q: Role.Q, Role.K: Role.Q, Role.V: Role.Q, Role.O: Role.O, Role.ROUTER: Role.ROUTER,
            Role.GATE: Role.GATE, Role.UP: Role.GATE, Role.DOWN: Role.DOWN}  # fmt: skip
"""The role under which a linear's input is observed: linears with one input are observed once."""


@dataclass(frozen=True)
class Wanted:
    """What to record of one input. gram: the full matrix. means: of x²."""

    gram: bool = False
    means: bool = True

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(self.gram or other.gram, self.means or other.means)


class Recorder:
    """Fills Statistics for the keys in `wanted` and ignores the rest. device: where matrices are summed."""

    def __init__(self, config: ModelConfig, wanted: dict[Key, Wanted], device: torch.device | str = "cpu") -> None:
        self.stats = {
            key: Statistics(
                input_width(config, key[0]),
                gram=what.gram,
                means=what.means,
                device=device,
            )
            for key, what in wanted.items()
        }
        self._last = max((role for role, _ in wanted), key=list(INPUT_OF).index, default=None)

    def record(self, key: Key, x_TK: Tensor, weights_T: Tensor | None) -> bool:
        """Count the inputs x (T, K) of one linear, each with its weight (1 where there are none).

        Returns whether no later linear of the block is wanted.
        """
        stats = self.stats.get(key)
        if stats is not None:
            stats.add(x_TK, weights_T)
        return key[0] is self._last

    def observe(self, role: Role, expert: int | None, x_TK: Tensor, tokens: Tensor | None) -> bool:
        """Count inputs as an `Observe` that lets the whole block be computed, every token alike."""
        self.record((role, expert), x_TK, None)
        return False

    def finish(self) -> dict[Key, Statistics]:
        """Complete the sums and return them."""
        for stats in self.stats.values():
            stats.finish()
        return self.stats


def input_width(config: ModelConfig, role: Role) -> int:
    """Return the number of inputs of the linears observed as `role`."""
    if role is Role.O:
        return config.q_size
    return config.intermediate_size if role is Role.DOWN else config.hidden_size


def gram_bytes(config: ModelConfig, key: Key, what: Wanted) -> int:
    """Return the memory that recording `key` takes, apart from its small sums."""
    return 4 * input_width(config, key[0]) ** 2 if what.gram else 0


def batches(config: ModelConfig, wanted: dict[Key, Wanted], max_bytes: int) -> Iterator[dict[Key, Wanted]]:
    """Split what is wanted so that the matrices of one batch fit `max_bytes`; one matrix always goes alone."""
    batch: dict[Key, Wanted] = {}
    used = 0
    for key, what in wanted.items():
        size = gram_bytes(config, key, what)
        if batch and used + size > max_bytes:
            yield batch
            batch, used = {}, 0
        batch[key] = what
        used += size
    if batch:
        yield batch


def all_inputs(config: ModelConfig) -> list[Key]:
    """Return every input that the linears of a layer read, in the order in which they are computed."""
    in_experts = [(role, expert) for role in (Role.GATE, Role.DOWN) for expert in experts(config)]
    return [(Role.Q, None), (Role.O, None), *in_experts]


def experts(config: ModelConfig) -> Iterable[int | None]:
    """Return the experts of a layer; (None,) for a dense one."""
    return range(config.num_experts) if config.num_experts else (None,)
