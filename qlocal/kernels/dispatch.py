"""Which kernel a weight gets, and the operations the layers call. The only door of this room beside `reference`.

On the CPU, the dtype says how a quantized weight is multiplied. float32: exactly, from the layout on disk; up to 8
tokens in one pass over it (native), more tokens by torch, a tile of rows at a time decoded into a panel that stays in
the cache. bfloat16, which allows roundings of that size: repacked at load into strips, and multiplied by the library
alone. On an NVIDIA card: repacked at load for the Triton kernels. Elsewhere, and where the library or triton is
missing or cannot read a weight: the reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which

import torch
from torch import Tensor

from qlocal.errors import UsageError
from qlocal.kernels import joining, native, reference
from qlocal.kernels.triton import layout
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight

KERNEL_CHOICES = ("auto", "reference", "int8")
"""`int8` is `auto`, but that cards read prompts with tokens rounded to 8 bits."""

ASKED_FOR = "the reference was asked for"
"""The reason of a weight whose kernels are plain torch because somebody wants that."""

FEW_TOKENS = 8
"""Tokens up to which an exact product is one native pass over the weight; with more, torch is quicker."""

# float32 values of a panel: 8 MB, measured best on a CPU with 2 MB of second-level cache a core (4 to 16 are alike).
_PANEL_ELEMENTS = 2 << 20


@dataclass(frozen=True, eq=False)
class PreparedWeight:
    """A weight in the layout of the kernel that will use it.

    shape: (N, K). dtype: bfloat16 (activations are rounded to it) or float32. Exactly one of `matrix` (native),
    `packed` and `dense` (Triton; dense: (N, K) of 16 bits) and `weight` (reference) is given, the latter three on
    `device`. reason: why it is the reference, for whoever shows it. is_int8: whether many tokens are rounded to 8 bits
    for a packed weight."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    matrix: native.NativeMatrix | None = None
    packed: layout.PackedWeight | None = None
    dense: Tensor | None = None
    weight: Weight | None = None
    reason: str | None = None
    is_int8: bool = False


@dataclass(frozen=True)
class KernelInfo:
    """One line of `qlocal doctor`: a kernel, whether it is the one in use, and why or why not."""

    name: str
    chosen: bool
    reason: str


def prepare(
    weight: Weight,
    device: torch.device | str,
    dtype: torch.dtype,
    kernels: str = "auto",
    *,
    keeps_words: bool = False,
) -> PreparedWeight:
    """Repack a weight once for the fastest kernel there is.

    weight: (N, K); dense rows on the CPU are not copied, nor are blocks for float32; everything else is (drop the
    original afterwards). dtype: torch.bfloat16 or torch.float32. kernels: `auto`, `reference` for plain torch, or
    `int8`, which changes what cards do with many tokens in bfloat16. keeps_words: activations of many tokens are never
    rounded to 8 bits.
    Raises UsageError for another `kernels`, or a QLOCAL_CPU_ISA that cannot be."""
    return prepare_joined([weight], device, dtype, kernels, keeps_words=keeps_words)


def prepare_joined(
    weights: Sequence[Weight],
    device: torch.device | str,
    dtype: torch.dtype,
    kernels: str = "auto",
    *,
    keeps_words: bool = False,
) -> PreparedWeight:
    """Do for weights that `joining.can_join` what `prepare` does for one, (sum of N, K)."""
    if kernels not in KERNEL_CHOICES:
        raise UsageError(f"there are no '{kernels}' kernels", hint=f"One of {', '.join(KERNEL_CHOICES)}.")
    assert dtype in (torch.bfloat16, torch.float32), f"matmul inputs are bfloat16 or float32, not {dtype}"
    shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
    device = torch.device(device)
    if _is_card(device):
        of_card = "auto" if keeps_words and kernels == "int8" else kernels
        return _prepare_on_card(joining.join(weights), device, dtype, of_card)
    library = native.load()
    reason = _why_not_native(weights[0], device, kernels, library)
    if reason is None and isinstance(library, native.Library):
        if dtype == torch.float32 or isinstance(weights[0], DenseWeight):
            matrix = native.make_matrix(joining.join(weights), library, is_exact=dtype == torch.float32)
        else:
            matrix = native.make_strips(weights, library, keeps_words=keeps_words)
        return PreparedWeight(shape, dtype, device, matrix=matrix)
    return PreparedWeight(shape, dtype, device, weight=_move(joining.join(weights), device), reason=reason)


def _why_not_native(
    weight: Weight, device: torch.device, kernels: str, library: native.Library | native.Absent
) -> str | None:
    if kernels == "reference":
        return ASKED_FOR
    if device.type != "cpu":
        return f"there are no native kernels for {device.type}"
    if isinstance(library, native.Absent):
        return library.reason
    return native.unsupported(weight)


def _prepare_on_card(weight: Weight, device: torch.device, dtype: torch.dtype, kernels: str) -> PreparedWeight:
    num_rows, columns = weight.shape
    shape = (num_rows, columns)
    reason = _why_not_triton(weight, device, dtype, kernels)
    if reason is not None:
        return PreparedWeight(shape, dtype, device, weight=_move(weight, device), reason=reason)
    if isinstance(weight, DenseWeight):
        data = weight.data.to(device)
        data = data if weight.row_map is None else data[weight.row_map.to(device)]
        return PreparedWeight(shape, dtype, device, dense=data.contiguous())
    packed = layout.pack(weight, device)
    is_int8 = kernels == "int8" and dtype == torch.bfloat16 and packed.can_be_int8
    return PreparedWeight(shape, dtype, device, packed=packed, is_int8=is_int8)


def _is_card(device: torch.device) -> bool:
    return device.type == "cuda"


def why_no_card_kernels(device: torch.device) -> str | None:
    """Return why the Triton kernels do not run on a device, or None where they do."""
    if not _is_card(device):
        return f"{device.type} is no NVIDIA card"
    if (missing := _missing_for_triton()) is not None:
        return missing
    return "the card is older than Ampere" if torch.cuda.get_device_capability(device) < (8, 0) else None


def _why_not_triton(weight: Weight, device: torch.device, dtype: torch.dtype, kernels: str) -> str | None:
    if kernels == "reference":
        return ASKED_FOR
    if (missing := why_no_card_kernels(device)) is not None:
        return missing
    if isinstance(weight, DenseWeight):
        is_exact = torch.float32 in (dtype, weight.data.dtype)  # tensor cores take 19 bits of a float32
        return "32 bits of a weight or of its inputs are torch's" if is_exact else None
    return layout.unsupported(weight)


def _missing_for_triton() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'qlocal[gpu]')"
    # It compiles a kernel's launcher in C at its first start.
    if not (os.environ.get("CC") or which("gcc") or which("clang")):
        return "triton needs a C compiler: install gcc or clang, or name one in CC"
    return None


def _move(weight: Weight, device: torch.device) -> Weight:
    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.data.to(device), moved(weight.row_map))
    if isinstance(weight, BlockWeight):
        return BlockWeight(weight.blocks.to(device), weight.ggml_type, weight.columns, moved(weight.row_map))
    return AffineWeight(
        codes=weight.codes.to(device),
        scales=weight.scales.to(device),
        zero_points=weight.zero_points.to(device),
        group_size=weight.group_size,
        g_idx=moved(weight.g_idx),
    )


def quant_matmul(x: Tensor, prepared: PreparedWeight) -> Tensor:
    """Multiply activations by a prepared weight.

    x: (M, K), any float type, on the weight's device. Returns (M, N) float32; products are added up in float32.
    Where the dtype is bfloat16, x may be rounded: for strips to 16-bit fixed point (csrc/fixed_point.h), with many
    tokens also to bytes with a scale for every 32 columns (csrc/byte_layout.h), for the reference, on a card, and with
    many tokens, to bfloat16; then so may the weight be, with many tokens, on a card or where the CPU multiplies
    bfloat16."""
    num_rows, columns = prepared.shape
    assert x.dim() == 2 and x.shape[1] == columns, f"activations {tuple(x.shape)} for a weight of {columns} columns"
    if len(x) == 0:
        return torch.zeros((0, num_rows), device=x.device)
    if is_on_card(prepared):
        from qlocal.kernels.triton.matmul import matmul  # triton is optional, and takes a second to load

        return matmul(x.to(prepared.dtype), prepared)
    matrix = prepared.matrix
    if matrix is not None and (len(x) <= FEW_TOKENS or not matrix.is_exact):
        return native.matmul(x.float(), matrix)
    inputs = x.to(prepared.dtype).float()
    if matrix is None:
        assert prepared.weight is not None, "prepare gives a matrix, a packed weight or a weight"
        return reference.quant_matmul(inputs, prepared.weight)
    if matrix.column_order is not None:
        inputs = inputs[:, matrix.column_order]
    with _matmul_precision(prepared.dtype):
        return _panel_matmul(inputs, matrix)


def _panel_matmul(x: Tensor, matrix: native.NativeMatrix) -> Tensor:
    """Decode a tile of rows at a time and multiply it: (M, K) float32 in `column_order` -> (M, N) float32."""
    num_rows, columns = matrix.shape
    rows = max(1, min(num_rows, _PANEL_ELEMENTS // max(1, columns)))
    panel = torch.empty((rows, columns))
    result = torch.empty((len(x), num_rows))
    for first in range(0, num_rows, rows):
        last = min(first + rows, num_rows)
        tile = panel[: last - first]
        native.decode(matrix, first, last, tile)
        result[:, first:last] = torch.mm(x, tile.T)
    return result


@contextmanager
def _matmul_precision(dtype: torch.dtype) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices in bfloat16 for a while: float32 sums and results, unlike a bfloat16 mm.

    On a CPU without bfloat16 it multiplies in float32 all the same."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if dtype == torch.bfloat16 else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def embedding_rows(weight: Weight, ids: Tensor) -> Tensor:
    """Return rows of an embedding: weight (V, D), ids (T,) int64 on its device. Returns (T, D) float32.

    Only these rows are read and decoded."""
    return reference.dequantize(reference.select_rows(weight, ids))


def is_on_card(prepared: PreparedWeight) -> bool:
    """Say whether a weight is multiplied by the Triton kernels."""
    return prepared.packed is not None or prepared.dense is not None


def kernel_name(prepared: PreparedWeight) -> str:
    """Return the kernel a weight will use: `avx512`, `avx2`, `triton` or `reference`."""
    if is_on_card(prepared):
        return "triton"
    return "reference" if prepared.matrix is None else prepared.matrix.library.isa.name.lower()


def set_threads(count: int) -> None:
    """Use `count` threads (at least 1) for the native kernels and for torch."""
    torch.set_num_threads(count)
    native.set_threads(count)


def describe() -> list[KernelInfo]:
    """Say which kernels this machine has, which one is chosen, and why not the others."""
    library = native.load()
    if isinstance(library, native.Absent):
        lines = [KernelInfo(isa.name.lower(), False, library.reason) for isa in reversed(native.Isa)]
        reference = KernelInfo("reference", True, "plain torch; many times slower than native kernels")
    else:
        lines = [_describe_isa(isa, library) for isa in reversed(native.Isa)]
        reference = KernelInfo("reference", False, "used for weights that the native kernels cannot read")
    return [_describe_triton(), *lines, reference]


def _describe_triton() -> KernelInfo:
    if not torch.cuda.is_available():
        return KernelInfo("triton", False, "torch finds no NVIDIA card")
    missing = _missing_for_triton()
    return KernelInfo("triton", missing is None, missing or "used for weights on NVIDIA cards from Ampere on")


def _describe_isa(isa: native.Isa, library: native.Library) -> KernelInfo:
    name = isa.name.lower()
    if isa == library.isa:
        features = ", ".join(feature.name.lower() for feature in library.features if feature.name)
        return KernelInfo(name, True, f"the CPU has {features}")
    if isa.needs not in library.features:
        return KernelInfo(name, False, "the CPU or the operating system lacks it")
    forced = native.ISA_VARIABLE if library.isa < isa else None
    return KernelInfo(name, False, f"{forced} names another" if forced else f"{library.isa.name.lower()} is faster")
