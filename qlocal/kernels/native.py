"""The native library: found, asked what the CPU can do, and called through ctypes.

It checks everything the C side takes for granted (`csrc/matrix.h`); it does not choose between kernels.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path

import torch
from torch import Tensor

import qlocal.kernels
from qlocal.errors import UsageError
from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.kernels import affine_layout, joining, large_pages
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight

ISA_VARIABLE = "QLOCAL_CPU_ISA"
_ABI = 5
_UNIT = 32  # columns that a kernel decodes at once
_STRIP_ROWS = 16


class CpuFeature(IntFlag):
    """What the CPU and the operating system support; the bits of csrc/cpu.h."""

    AVX2 = 1
    AVX512 = 2
    AVX512_VNNI = 4
    AVX512_BF16 = 8
    AMX_BF16 = 16
    AMX_INT8 = 32


class Isa(IntEnum):
    """Instruction sets that have kernels, the faster one last; the numbers of csrc/cpu.h."""

    AVX2 = 1
    AVX512 = 2
    AVX512_VNNI = 3
    AMX = 4

    @property
    def needs(self) -> CpuFeature:
        if self is Isa.AMX:
            return CpuFeature.AVX512_VNNI | CpuFeature.AMX_BF16 | CpuFeature.AMX_INT8
        return CpuFeature[self.name]


@dataclass(frozen=True)
class Library:
    """The loaded library and the instruction set that its calls use."""

    path: Path
    features: CpuFeature
    isa: Isa
    functions: ctypes.CDLL


@dataclass(frozen=True)
class Absent:
    """Why there are no native kernels, as a sentence for the user. `features`: None where nothing could be asked."""

    reason: str
    path: Path | None = None
    features: CpuFeature | None = None


class _Matrix(ctypes.Structure):
    """`struct Matrix` of csrc/matrix.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("row_map", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("storage", ctypes.c_int32),
        ("layout", ctypes.c_int32),
        ("keeps_words", ctypes.c_int32),
    )


class _AffineSource(ctypes.Structure):
    """`struct AffineSource` of csrc/affine_records.cpp."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
    )


@dataclass(frozen=True, eq=False)
class NativeMatrix:
    """A weight as the library reads it. `data` and `row_map` keep the memory that `matrix` points to alive.

    shape: (N, K). column_order: (K,) int64, by which activations are gathered first, or None.
    is_exact: all products are made in float32; else from strips (csrc/strip_layout.h) in 16-bit fixed point, or with
    many tokens in bfloat16, in words or in bytes (csrc/matrix.h)."""

    library: Library
    matrix: _Matrix
    shape: tuple[int, int]
    data: Tensor
    row_map: Tensor | None = None
    column_order: Tensor | None = None

    @property
    def is_exact(self) -> bool:
        return bool(self.matrix.layout == _STORED_ROWS)


@functools.cache
def load() -> Library | Absent:
    """Load the library once a process and choose its instruction set.

    Raises UsageError when QLOCAL_CPU_ISA names one that does not exist or that this CPU cannot run."""
    wanted = _wanted_isa()
    if wanted == "none":
        return Absent(f"{ISA_VARIABLE}=none turns them off")
    path = _find()
    if path is None:
        return Absent("the library was not built: no C++ compiler was found when qlocal was installed")
    try:
        functions = _declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        return Absent(f"{path.name} cannot be loaded: {error}", path)
    if functions.qlocal_abi() != _ABI:
        return Absent(f"{path.name} belongs to another version of qlocal; install again", path)
    features = CpuFeature(functions.qlocal_cpu_features())
    usable = [isa for isa in Isa if isa.needs in features]
    if not usable:
        return Absent("this CPU has no AVX2 with FMA and F16C", path, features)
    isa = usable[-1] if wanted is None else Isa[wanted.upper()]
    if isa not in usable:
        names = ", ".join(i.name.lower() for i in usable)
        raise UsageError(f"{ISA_VARIABLE}={wanted}, but this CPU runs only {names}", hint=f"Unset {ISA_VARIABLE}.")
    functions.qlocal_set_threads(torch.get_num_threads())
    return Library(path, features, isa, functions)


def _wanted_isa() -> str | None:
    wanted = os.environ.get(ISA_VARIABLE, "").lower() or None
    names = [isa.name.lower() for isa in Isa] + ["none"]
    if wanted is not None and wanted not in names:
        raise UsageError(
            f"{ISA_VARIABLE}={wanted} is no instruction set with kernels", hint=f"One of {', '.join(names)}."
        )
    return wanted


def _find() -> Path | None:
    """Look beside the Python files, and where an editable installation puts what it has built."""
    candidates = (Path(folder) / "_native.so" for folder in qlocal.kernels.__path__)
    return next((path for path in candidates if path.is_file()), None)


def _declare(functions: ctypes.CDLL) -> ctypes.CDLL:
    matrix, i32, i64 = ctypes.POINTER(_Matrix), ctypes.c_int32, ctypes.c_int64
    floats = ctypes.c_void_p
    signatures: dict[str, tuple[list[type], type | None]] = {
        "qlocal_abi": ([], i32),
        "qlocal_cpu_features": ([], ctypes.c_uint32),
        "qlocal_set_threads": ([i32], None),
        "qlocal_get_threads": ([], i32),
        "qlocal_make_affine_records": ([ctypes.POINTER(_AffineSource), ctypes.c_void_p], None),
        "qlocal_bytes_of_strips": ([matrix], i64),
        "qlocal_make_strips": ([matrix, ctypes.c_void_p], None),
        "qlocal_matmul": ([i32, matrix, floats, i64, i64, ctypes.c_void_p, floats, i64], None),
        "qlocal_decode": ([i32, matrix, i64, i64, floats], None),
        "qlocal_quantize_blocks": ([i32, ctypes.c_void_p], None),
        "qlocal_feedback_blocks": ([i32, ctypes.c_void_p], None),
        "qlocal_add_gram": ([ctypes.c_void_p, i64, i64, ctypes.c_void_p], i32),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(functions, name)
        function.argtypes, function.restype = arguments, result
    return functions


def set_threads(count: int) -> None:
    """Use `count` threads, at least 1, for all products and decoding from now on; without the library, do nothing."""
    library = load()
    if isinstance(library, Library):
        library.functions.qlocal_set_threads(count)


# --- Weights as the library reads them


def unsupported(weight: Weight) -> str | None:
    """Return why the library cannot read this weight, or None when it can."""
    if isinstance(weight, DenseWeight):
        return None if weight.data.dim() == 2 else "it is not a matrix"
    if isinstance(weight, BlockWeight):
        return None
    if weight.group_size % _UNIT != 0:
        return f"its group size {weight.group_size} is no multiple of {_UNIT}"
    if not affine_layout.has_even_groups(weight):
        return "its groups differ in size"
    return None


def make_matrix(weight: Weight, library: Library, *, is_exact: bool = True) -> NativeMatrix:
    """Describe a weight on the CPU to the library; `unsupported(weight)` must be None.

    Blocks and dense rows stay where they are (a mapped file); AffineWeight is repacked. Products with it are exact;
    unless is_exact, those of BF16 with many tokens round these to bfloat16, where AMX multiplies that."""
    if isinstance(weight, AffineWeight):
        return _affine_matrix(weight, library)
    if isinstance(weight, DenseWeight):
        rows = weight.data if weight.data.stride(1) == 1 else weight.data.contiguous()
        made = _row_matrix(rows, weight.shape[1], FLOAT_STORAGE[rows.dtype], weight.row_map, library)
        if rows.dtype == torch.bfloat16 and library.isa >= Isa.AMX and not is_exact:
            made.matrix.layout = _BF16_ROWS
        return made
    rows = weight.blocks if weight.blocks.stride(1) == 1 else weight.blocks.contiguous()
    layout = LAYOUTS[weight.ggml_type]
    whole = weight.columns % layout.block_size == 0
    assert whole and rows.shape[1] == weight.columns // layout.block_size * layout.block_bytes, (
        f"a reader gives whole {weight.ggml_type.name} blocks, not {rows.shape[1]} bytes for {weight.columns} columns"
    )
    return _row_matrix(rows, weight.columns, int(weight.ggml_type), weight.row_map, library)


def make_strips(weights: Sequence[Weight], library: Library, *, keeps_words: bool = False) -> NativeMatrix:
    """Copy quantized weights with one input into strips, for products in fixed point; `unsupported` must be None for
    each, and they must be such as can be joined. keeps_words: with many tokens, too, activations keep 16 bits."""
    if any(weight.shape[0] % _STRIP_ROWS for weight in weights[:-1]):
        weights = [joining.join(weights)]  # a strip would have rows of two
    stored = make_matrix(weights[0], library)
    matrix = _Matrix(
        num_rows=sum(weight.shape[0] for weight in weights),
        columns=stored.shape[1],
        group_size=stored.matrix.group_size,
        storage=stored.matrix.storage,
        layout=_STRIPS,
        keeps_words=keeps_words,
    )
    num_bytes = library.functions.qlocal_bytes_of_strips(matrix)
    strip_bytes = num_bytes // -(-matrix.num_rows // _STRIP_ROWS)
    strips = large_pages.zeros(num_bytes)
    at = matrix.data = strips.data_ptr()
    for index, weight in enumerate(weights):
        part = stored if index == 0 else make_matrix(weight, library)
        library.functions.qlocal_make_strips(part.matrix, at)
        at += weight.shape[0] // _STRIP_ROWS * strip_bytes
    return NativeMatrix(library, matrix, (matrix.num_rows, matrix.columns), strips, column_order=stored.column_order)


_STORED_ROWS, _STRIPS, _BF16_ROWS = 0, 1, 2

FLOAT_STORAGE = {
    torch.float32: int(GgmlType.F32),
    torch.float16: int(GgmlType.F16),
    torch.bfloat16: int(GgmlType.BF16),
}
"""What plain rows are called; the numbers of csrc/matrix.h."""
_AFFINE_STORAGE = {torch.float16: 100, torch.bfloat16: 101}


def _affine_matrix(weight: AffineWeight, library: Library) -> NativeMatrix:
    order = affine_layout.column_order(weight)
    records = _affine_records(weight, order, library)
    storage = _AFFINE_STORAGE[weight.scales.dtype]
    made = _row_matrix(records, weight.shape[1], storage, None, library, weight.group_size)
    return NativeMatrix(library, made.matrix, made.shape, records, column_order=order)


def _affine_records(weight: AffineWeight, order: Tensor | None, library: Library) -> Tensor:
    """Return the records of all rows, (N, G * bytes of one) uint8."""
    num_rows, columns = weight.shape
    num_groups = columns // weight.group_size
    assert weight.codes.shape == (num_rows, columns // 2) and weight.codes.dtype == torch.uint8
    assert weight.scales.shape == weight.zero_points.shape == (num_rows, num_groups)
    assert weight.scales.element_size() == 2 and weight.zero_points.dtype == torch.uint8
    codes, scales, zeros = (t.contiguous() for t in (weight.codes, weight.scales, weight.zero_points))
    source = _AffineSource(
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        zero_points=zeros.data_ptr(),
        order=None if order is None else order.data_ptr(),
        num_rows=num_rows,
        columns=columns,
        group_size=weight.group_size,
    )
    records = torch.empty((num_rows, num_groups * affine_layout.record_bytes(weight.group_size)), dtype=torch.uint8)
    library.functions.qlocal_make_affine_records(source, records.data_ptr())
    return records


def _row_matrix(
    rows: Tensor, columns: int, storage: int, row_map: Tensor | None, library: Library, group_size: int = 0
) -> NativeMatrix:
    assert rows.device.type == "cpu", "the library reads host memory alone"
    num_rows = rows.shape[0]
    if row_map is not None:
        row_map = row_map.to(torch.int64).contiguous()
        inside = len(row_map) == num_rows and bool(((row_map >= 0) & (row_map < num_rows)).all())
        assert inside, "a reader makes row maps that are permutations of the rows"
    matrix = _Matrix(
        data=rows.data_ptr(),
        row_map=None if row_map is None else row_map.data_ptr(),
        num_rows=num_rows,
        columns=columns,
        row_bytes=rows.stride(0) * rows.element_size(),
        group_size=group_size,
        storage=storage,
    )
    return NativeMatrix(library, matrix, (num_rows, columns), rows, row_map)


# --- Calls


def matmul(x: Tensor, weight: NativeMatrix) -> Tensor:
    """Multiply activations by a weight. x: (M, K) float32, M at least 1. Returns (M, N) float32."""
    num_rows, columns = weight.shape
    tokens = x.shape[0]
    assert x.dtype == torch.float32 and x.shape[1] == columns, "dispatch converts and checks the activations"
    assert tokens >= 1, "dispatch answers empty products"
    x = x.contiguous()
    order = weight.column_order
    result = torch.empty((tokens, num_rows))
    weight.library.functions.qlocal_matmul(
        weight.library.isa,
        weight.matrix,
        x.data_ptr(),
        columns,
        tokens,
        None if order is None else order.data_ptr(),
        result.data_ptr(),
        num_rows,
    )
    return result


def decode(weight: NativeMatrix, first: int, last: int, panel: Tensor) -> None:
    """Write the values of rows first..last of an exact matrix, columns in `column_order`, to panel (last - first, K)
    float32."""
    num_rows, columns = weight.shape
    assert weight.is_exact, "strips are never decoded to floats, and bfloat16 need not be"
    assert 0 <= first <= last <= num_rows, f"rows {first}..{last} of {num_rows}"
    assert panel.shape == (last - first, columns) and panel.dtype == torch.float32 and panel.is_contiguous(), (
        "the panel has exactly the values of these rows"
    )
    weight.library.functions.qlocal_decode(weight.library.isa, weight.matrix, first, last, panel.data_ptr())
