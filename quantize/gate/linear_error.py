"""How far each linear's output is from the source's, both given the BF16 stream's inputs: ‖Wx - Qx‖² / ‖Wx‖².

AWQ folds a scale s over a linear's input columns into whoever makes that input, so stored weights cannot be compared:
    W x = (W diag(s)) (x / s).
A norm that took the scale says what it is: the candidate's norm divided by the source's is 1 / s, and the linear is fed
that much of the input. Where the producer is a linear (`up` before `down`, `v` before `o`), its rows were divided by
s and rounded, so s is the factor a row that brings its outputs nearest to the source's: the producer's error is what
remains after it, the consumer is fed x / s. A factor that belongs there by mistake therefore shows in the consumer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qlocal.formats.base import Checkpoint
from qlocal.layers.decoder import DecoderLayer
from qlocal.layers.linear import vector
from qlocal.layers.loader import EMBEDDING, HEAD, load_embedding
from qlocal.models.base import Role, TensorSpec
from qlocal.weights import DenseWeight
from quantize.calibration.recorder import INPUT_OF, Key

LEAST_LIKENESS = 0.5
"""Squared cosine below which a row's factor says nothing: the row is damaged, not scaled."""
Model = tuple[Checkpoint, DecoderLayer]


class Headed(Protocol):
    """What `edge_errors` needs of a model."""

    checkpoint: Checkpoint

    def logits(self, hidden_states: Tensor) -> Tensor: ...


def layer_errors(source: Model, candidate: Model, index: int, inputs: dict[Key, Tensor]) -> dict[str, float]:
    """Return the relative output error of every quantized linear of layer `index` whose input was seen.

    inputs: (S, K) f32 by the role and expert under which the source's layer observes them.
    """
    comparison = _LayerComparison(source, candidate, index)
    for key, x_SK in inputs.items():  # in the order of the forward: producers come before consumers
        comparison.compare(key, x_SK)
    return comparison.errors


def edge_errors(source: Headed, candidate: Headed, states: Tensor, ids: Tensor) -> dict[str, float]:
    """Return the errors beside the layers: the head's on the source's last states (S, D) f32, the embedding's rows."""
    wanted, found = source.logits(states), candidate.logits(states)
    embedded = [load_embedding(model.checkpoint, "cpu")(ids) for model in (source, candidate)]
    errors = {
        HEAD: relative_error(wanted, found - wanted),
        EMBEDDING: relative_error(embedded[0], embedded[1] - embedded[0]),
    }
    return {name.removesuffix(".weight"): error for name, error in errors.items() if error is not None}


def relative_error(wanted: Tensor, difference: Tensor) -> float | None:
    """Return ‖difference‖² / ‖wanted‖², or None where nothing is wanted."""
    energy = float(wanted.square().sum(dtype=torch.float64))
    return float(difference.square().sum(dtype=torch.float64)) / energy if energy else None


class _LayerComparison:
    def __init__(self, source: Model, candidate: Model, index: int) -> None:
        self._source, self._source_layer = source
        self._candidate, self._candidate_layer = candidate
        config = self._source.config
        self._specs = list(self._source.architecture.layer_tensors(config, index))
        folds = list(self._source.architecture.scale_folds(config, index))
        self._producer_of = {name: fold.producer for fold in folds for name in fold.consumers}
        self._norms = {s.name for s in self._specs if s.role in (Role.INPUT_NORM, Role.POST_ATTENTION_NORM)}
        self._producers = {fold.producer for fold in folds} if self._candidate.format in ("awq", "gptq") else set()
        self._factors: dict[str, Tensor] = {}
        self.errors: dict[str, float] = {}

    def compare(self, key: Key, x_SK: Tensor) -> None:
        """Compare all linears that read one input."""
        role, expert = key
        readers = [s for s in self._specs if s.is_quantized and INPUT_OF[s.role] is role and s.expert == expert]
        own_SK = x_SK * self._input_factor(readers[0], x_SK.device)
        wanted = self._source_layer.linear(role, expert)[0](x_SK)
        found = self._candidate_layer.linear(role, expert)[0](own_SK)
        for spec in readers:
            part = self._source_layer.linear(spec.role, expert)[1]
            self._compare_outputs(spec, wanted[part], found[part])

    def _compare_outputs(self, spec: TensorSpec, wanted_SN: Tensor, found_SN: Tensor) -> None:
        if spec.name in self._producers:
            factor_N = row_factors(wanted_SN, found_SN)
            self._factors[spec.name] = factor_N
            found_SN = found_SN * factor_N
        bias_N = self._bias(spec, wanted_SN.device)
        product_SN = wanted_SN if bias_N is None else wanted_SN - bias_N  # a large bias would hide an error
        error = relative_error(product_SN, found_SN - wanted_SN)
        if error is not None:
            self.errors[spec.module] = error

    def _input_factor(self, reader: TensorSpec, device: torch.device) -> Tensor:
        """Return what the candidate's own producer makes of the source's input, (K,) or () f32."""
        producer = self._producer_of.get(reader.name, "")
        if producer in self._norms:
            norms = [vector(model.read(producer), device) for model in (self._source, self._candidate)]
            return torch.where(norms[0] == 0, 1.0, norms[1] / norms[0])
        return 1 / self._factors[producer] if producer in self._factors else torch.ones((), device=device)

    def _bias(self, spec: TensorSpec, device: torch.device) -> Tensor | None:
        for other in self._specs:
            if other.is_bias and other.module == spec.module:
                weight = self._source.read(other.name)
                assert isinstance(weight, DenseWeight), "biases are never quantized"
                return vector(weight, device)
        return None


def row_factors(wanted_SN: Tensor, found_SN: Tensor) -> Tensor:
    """Return the factor (N,) that brings every row's outputs nearest to the wanted ones; 1 where they are not alike."""
    both, own, other = (found_SN * wanted_SN).sum(0), found_SN.square().sum(0), wanted_SN.square().sum(0)
    alike = (both > 0) & (both.square() >= LEAST_LIKENESS * own * other)
    return torch.where(alike, both / own.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
