"""GGUF for one unit: every tensor by its type.

A decoder layer whose inputs were seen is solved in order, with error feedback into the blocks of each type; otherwise
linears are independent, their columns weighed by an importance that makes up for no error of another column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qlocal.formats.gguf_rows import permute_rows, rows_to_store
from qlocal.formats.type_mix import is_head
from qlocal.ggml_types import FLOAT_TYPES, GgmlType
from qlocal.kernels.reference import dequantize
from qlocal.models.base import Role, TensorSpec
from qlocal.weights import BlockWeight, DenseWeight
from quantize.calibration.recorder import INPUT_OF, Key, Wanted
from quantize.methods.base import Quantized, Statistics
from quantize.methods.ggml import quantize_ggml
from quantize.methods.grids import BlockGrid
from quantize.solvers.base import GRAM, MIN_EXPERT_TOKENS, LayerResult, LayerTask
from quantize.solvers.sequential import SequentialLayer

_FLOATS = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}


def solve(
    task: LayerTask, *, plain: bool, feedback: bool, importance: Mapping[str, Tensor] | None = None
) -> LayerResult:
    """Encode every tensor of the unit; experts of a layer are stacked.

    plain: rounding without searches. feedback: solve the layer in order, which needs its inputs. importance: (K,) f32
    by tensor name, instead of what the inputs showed; what it does not name is fitted by its weights alone.
    """
    if feedback and task.run is not None:
        return _GgufLayer(task).solve()
    result = LayerResult()

    def quantized(spec: TensorSpec) -> Tensor:
        columns = _importance(task, spec) if importance is None else importance.get(spec.name)
        made = _rounded(task, spec, columns, plain=plain)
        result.losses[spec.module] = made.loss
        task.on_loss(spec.module, made.loss)
        return _stored(made.weight, spec)

    result.tensors = _encoded(task, quantized)
    return result


class _GgufLayer(SequentialLayer):
    def __init__(self, task: LayerTask) -> None:
        super().__init__(task)
        self._blocks: dict[str, BlockWeight] = {}

    def wanted(self, role: Role) -> Wanted:
        return GRAM

    def solve_inputs(self, stats: dict[Key, Statistics]) -> None:
        for key, of_input in stats.items():
            linears = [spec for spec in self.linears_of(key) if _type_of(self.task, spec) not in FLOAT_TYPES]
            if of_input.tokens < MIN_EXPERT_TOKENS:
                for spec in linears:
                    self.say_rounded(spec, of_input)
                    self._keep(spec, _rounded(self.task, spec, _importance(self.task, spec), plain=False))
            elif linears:
                self._solve(linears, of_input)

    def finished(self) -> LayerResult:
        def quantized(spec: TensorSpec) -> Tensor:
            return _stored(self._blocks.pop(spec.name), spec)

        self.result.tensors = _encoded(self.task, quantized)
        return self.result

    def _solve(self, linears: list[TensorSpec], stats: Statistics) -> None:
        grids = {spec: BlockGrid(_type_of(self.task, spec)) for spec in linears}
        sizes = tuple(sorted({grid.columns for grid in grids.values()}))
        solver = self.make_solver(linears, stats, sizes)
        for spec, grid in grids.items():
            self._keep(spec, solver.quantize(self.task.source.read_float32(spec.name), grid))

    def _keep(self, spec: TensorSpec, quantized: Quantized[BlockWeight]) -> None:
        self._blocks[spec.name] = quantized.weight
        self.use(spec, lambda: DenseWeight(dequantize(quantized.weight).bfloat16()), quantized.loss)


def _encoded(task: LayerTask, quantized: Callable[[TensorSpec], Tensor]) -> dict[str, Tensor]:
    """Return the stored tensors of the unit by GGUF name, in file order."""
    stacked: dict[str, list[Tensor]] = {}
    for spec in task.specs:
        ggml_type = _type_of(task, spec)
        if ggml_type in FLOAT_TYPES:
            data = rows_to_store(task.source.read(spec.name), spec).to(_FLOATS[ggml_type])
        else:
            data = quantized(spec)
        stacked.setdefault(spec.gguf_name, []).append(data)
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in stacked.items()}


def _type_of(task: LayerTask, spec: TensorSpec) -> GgmlType:
    assert task.target.types is not None, "GGUF targets have a type for every tensor"
    return task.target.types[spec.gguf_name].ggml_type


def _rounded(task: LayerTask, spec: TensorSpec, importance: Tensor | None, *, plain: bool) -> Quantized[BlockWeight]:
    """Return a weight whose columns are independent, rows as in the source. importance: (K,) f32, or None."""
    weight = task.source.read(spec.name).data
    return quantize_ggml(weight, _type_of(task, spec), importance, plain=plain)


def _stored(weight: BlockWeight, spec: TensorSpec) -> Tensor:
    """Return the blocks with rows in the file's order."""
    return permute_rows(weight.blocks, spec.permuted_heads) if spec.permuted_heads else weight.blocks


def _importance(task: LayerTask, spec: TensorSpec) -> Tensor | None:
    """Return mean x² of the inputs, or None where none were seen: an embedding, an expert never chosen."""
    role = Role.HEAD if is_head(spec, task.source.config) else INPUT_OF.get(spec.role)
    stats = None if role is None else task.captured.get((role, spec.expert))
    return stats.mean_square_K if stats is not None and stats.tokens else None
