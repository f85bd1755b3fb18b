"""What a run will take at its peak, from the headers: anonymous memory and disk. No torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from qlocal.devices import KEPT_BYTES
from qlocal.errors import PlanError
from qlocal.models.base import ModelConfig, TensorSpec
from quantize.options import Options
from quantize.recipe import Recipe
from quantize.type_choice import MAX_LENGTH, MAX_WINDOWS

BASE_BYTES = (700 << 20) + KEPT_BYTES
"""The interpreter with torch and its thread pools, and what is freed and kept."""
DEFAULT_GRAM_BYTES = 4 << 30
CARD_BASE_BYTES = 1 << 30
"""The CUDA context and libraries, and what torch's allocator keeps between sizes."""
LEARNED_TOKENS = 2048
"""Tokens of a step of --learn, or those of one sample where it is longer."""
HEAD_STRIP_ELEMENTS = 1 << 25
"""Elements of a head that are solved at once: 128 MB in float32."""
SCRATCH_BYTES = 512 << 20
"""What the values between the linears of one pass may take, where a sample does not need more."""


@dataclass(frozen=True)
class Estimate:
    """Bytes. memory: anonymous peak, mapped files apart. work: the work folder; result: what remains. card: what a card
    needs to run and solve the layers."""

    memory: int
    activations: int
    work: int
    result: int
    card: int

    @property
    def disk(self) -> int:
        return self.work + self.result


def estimate(recipe: Recipe, options: Options) -> Estimate:
    """Return the peaks of a run."""
    config = recipe.config
    calibration = options.calibration
    tokens = calibration.num_samples * min(calibration.seq_len, config.max_position_embeddings)
    hidden = tokens * config.hidden_size * 4 if options.needs_calibration else 0
    sequential = _is_sequential(options)
    activations = hidden * 2  # inputs and outputs of a layer
    if sequential:  # and what attention gives `o`
        activations += tokens * config.q_size * 4
    if options.learn:  # what the source's own layer makes
        activations += hidden
    if options.target_size is not None:  # a stream for every tensor, before the layers are captured
        streams = len(recipe.targets[0].tensors) * MAX_WINDOWS * MAX_LENGTH
        activations = max(activations, streams * config.hidden_size * 4)
    result = options.target_size or sum(target.num_bytes for target in recipe.targets)
    solving = _solver_bytes(recipe, options) + _forward_bytes(config, options)
    memory = BASE_BYTES + max(solving, _learning_bytes(recipe, options))
    return Estimate(memory, activations, result + activations, result, _card_bytes(recipe, options))


def check_memory(needed: Estimate, options: Options) -> None:
    """Raise PlanError when the peak is above --max-memory."""
    if options.max_memory is not None and needed.memory > options.max_memory:
        raise PlanError(
            f"this takes {_gb(needed.memory)} of memory at its peak, --max-memory is {_gb(options.max_memory)}",
            hint="Allow more, leave out --learn, or make GGUF alone with --no-hessian, without matrices of inputs.",
        )


def check_disk(needed: Estimate, work_folder: Path, out: Path, already: int) -> None:
    """Raise PlanError when a disk lacks the room. already: bytes of finished work that count no more."""
    work, result = max(0, needed.work - already), needed.result
    work_disk, out_disk = _existing(work_folder), _existing(out)
    if work_disk.stat().st_dev == out_disk.stat().st_dev:
        _check_free(work_disk, work + result)
        return
    _check_free(work_disk, work)
    _check_free(out_disk, result)


def _check_free(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PlanError(
            f"{folder}: {_gb(needed)} are needed, {_gb(free)} are free on that disk",
            hint="Free space there, or choose other places with --out and --work-dir.",
        )


def _existing(path: Path) -> Path:
    """Return `path` or the nearest folder above it that exists."""
    return path if path.exists() else _existing(path.parent)


def _solver_bytes(recipe: Recipe, options: Options) -> int:
    """Return the largest set of matrices that one linear needs at once."""
    linears = [spec for spec in recipe.architecture.layer_tensors(recipe.config, 0) if spec.is_quantized]
    largest = max(_linear_bytes(spec, options) for spec in linears)
    if _is_sequential(options):
        # the layer with its quantized weights in bf16, for the inputs of those that follow, and the packed results
        largest += sum(spec.shape[0] * spec.shape[1] for spec in linears) * 5 // 2
    return max(largest, _head_unit_bytes(recipe.config, options))


def _head_unit_bytes(config: ModelConfig, options: Options) -> int:
    """Return what the embedding takes in F16 on its way to the file, and a head in codes beside it."""
    table = config.vocab_size * config.hidden_size
    if not options.quantize_head:
        return 2 * table
    codes = 2 * table * 5 // 8  # with scales, before and after the strips are joined
    matrices = 2 * 4 * config.hidden_size**2  # one is the factor, the other what the next result needs
    return 2 * table + codes + matrices + 4 * 4 * HEAD_STRIP_ELEMENTS


def _learning_bytes(recipe: Recipe, options: Options) -> int:
    """Return what a layer takes while it learns: codes as bytes, values in bf16, and packed as it was and was best; the
    slope of one linear; and what a step keeps of its tokens for the way back."""
    if not options.learn:
        return 0
    config = recipe.config
    linears = [spec for spec in recipe.architecture.layer_tensors(config, 0) if spec.is_quantized]
    sizes = [spec.shape[0] * spec.shape[1] for spec in linears]
    length = min(options.calibration.seq_len, config.max_position_embeddings)
    tokens = max(length, min(LEARNED_TOKENS, length * samples_at_once(config, length)))
    chosen = config.num_experts_per_tok if config.num_experts else 1
    kept = chosen * 8 * config.intermediate_size + 24 * config.hidden_size
    return sum(sizes) * 4 + max(sizes) * 4 + tokens * kept * 4


def _is_sequential(options: Options) -> bool:
    """Whether layers are solved in order, by the matrices of their inputs."""
    folders = bool(set(options.formats) & {"awq", "gptq"})
    return options.needs_calibration and (folders or options.uses_hessian)


def _linear_bytes(spec: TensorSpec, options: Options) -> int:
    rows, columns = spec.shape
    weights = rows * columns
    needs = [weights if options.formats == ("gguf",) else weights * (4 + 4 + 1 + 1)]
    if _is_sequential(options):
        # the matrix, the weight that becomes its errors, codes before and after packing, the effective weight
        needs.append(4 * columns * columns + weights * (4 + 1 + 1 + 2))
    return max(needs)


def _card_bytes(recipe: Recipe, options: Options) -> int:
    """Return what a card needs: a layer in bf16, what a pass leaves between its linears, and the larger of what solving
    one linear takes and of the matrices that are recorded together; or the gate's heads and streams."""
    config = recipe.config
    linears = [spec for spec in recipe.architecture.layer_tensors(config, 0) if spec.is_quantized]
    layer = sum(2 * spec.shape[0] * spec.shape[1] for spec in linears)
    solving = 0
    if _is_sequential(options):
        recorded = sum(4 * spec.shape[1] ** 2 for spec in linears)
        one = max(4 * spec.shape[1] * (spec.shape[1] + 2 * spec.shape[0]) for spec in linears)
        solving = max(one, min(recorded, DEFAULT_GRAM_BYTES))
    held = layer + max(solving, _learning_bytes(recipe, options)) + _forward_bytes(config, options)
    candidates = 1 + len(recipe.targets)
    compared = candidates * (2 * config.vocab_size * config.hidden_size + layer) if options.verify else 0
    return CARD_BASE_BYTES + max(held, compared)


def _forward_bytes(config: ModelConfig, options: Options) -> int:
    """Return the scratch of one pass in a layer: gate, up and their product in f32, and the scores' blocks."""
    if not options.needs_calibration:
        return 0
    length = min(options.calibration.seq_len, config.max_position_embeddings)
    tokens = length * min(options.calibration.num_samples, samples_at_once(config, length))
    return tokens * (3 * config.intermediate_size + 6 * config.hidden_size) * 4


def samples_at_once(config: ModelConfig, length: int) -> int:
    """Return how many samples of `length` tokens a pass takes at once: weights are unpacked once for all of them."""
    per_token = 4 * (3 * config.intermediate_size + 6 * config.hidden_size)
    return max(1, SCRATCH_BYTES // (per_token * length))


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
