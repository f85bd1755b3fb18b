"""Every native kernel against the reference: all storages, numbers of tokens on both sides of every limit, odd shapes.

Stated tolerances. float32: 2e-6 of the sum of |x| |w| (what rounding errors grow with). bfloat16: that, and half a step
of fixed point (max |x| / 32512) for every |w|. Above 8 tokens, float weights and AMX round inputs and weights by up to
2^-8 each: 2^-7 of the sum of |x| |w|. Without AMX these are words: in every 256 columns half a step of max |x| / 4400
for every |w|, and 1.2 steps of max |w| / 1900 for every |x|, with twice the max since the scales allow larger weights
than there may be; or, with VNNI and where the weight does not keep words, bytes: in every 32 columns half a step of max
|x| / 127 for every |w|.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qlocal.ggml_types import GgmlType
from qlocal.kernels import dispatch, native, reference
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight
from tests.kernels.weights import QUANTIZED_TYPES, random_affine, random_blocks

TOKENS = (1, 2, 3, 7, 8, 9, 17, 33)
LARGEST_FIXED = 32512
DTYPES = (torch.float32, torch.bfloat16)


def has_tiles() -> bool:
    return isa_in_use() is native.Isa.AMX


def isa_in_use() -> native.Isa | None:
    library = native.load()
    return library.isa if isinstance(library, native.Library) else None


def word_limit(inputs: Tensor, values: Tensor) -> Tensor:
    limit = torch.zeros(len(inputs), len(values), dtype=torch.float64)
    for x, w in zip(inputs.abs().split(256, dim=1), values.abs().split(256, dim=1), strict=True):
        limit += x.amax(1, keepdim=True) / 4400 / 2 * w.sum(1)
        limit += 1.2 * 2 * w.amax(1) / 1900 * x.sum(1, keepdim=True)
    return limit


def byte_limit(inputs: Tensor, values: Tensor) -> Tensor:
    limit = torch.zeros(len(inputs), len(values), dtype=torch.float64)
    for x, w in zip(inputs.abs().split(32, dim=1), values.abs().split(32, dim=1), strict=True):
        limit += x.amax(1, keepdim=True) / 127 / 2 * w.sum(1)
    return limit


def assert_products_agree(weight: Weight, dtype: torch.dtype, tokens: tuple[int, ...] = TOKENS) -> None:
    for keeps_words in (False, True) if dtype == torch.bfloat16 and not isinstance(weight, DenseWeight) else (False,):
        assert_agrees(weight, dtype, tokens, keeps_words=keeps_words)


def assert_agrees(weight: Weight, dtype: torch.dtype, tokens: tuple[int, ...], *, keeps_words: bool) -> None:
    num_rows, columns = weight.shape
    prepared = dispatch.prepare(weight, "cpu", dtype, keeps_words=keeps_words)
    in_bytes = isa_in_use() is native.Isa.AVX512_VNNI and not keeps_words
    assert dispatch.kernel_name(prepared) != "reference"
    values = reference.dequantize(weight).double()
    is_finite = values.isfinite().all(1)  # what is not must stay visible, in its own rows alone
    matrix = prepared.matrix
    order = slice(None) if matrix is None or matrix.column_order is None else matrix.column_order
    for count in tokens:
        x = torch.randn((count, columns), generator=torch.Generator().manual_seed(count))
        inputs = x.double()
        in_bf16 = dtype == torch.bfloat16 and count > 8 and (isinstance(weight, DenseWeight) or has_tiles())
        limit = (2**-7 if in_bf16 else 2e-6) * (inputs.abs() @ values.abs().T)
        if dtype == torch.bfloat16 and not in_bf16 and count > 8:
            limit += (byte_limit if in_bytes else word_limit)(inputs[:, order], values[:, order])
        elif dtype == torch.bfloat16 and not in_bf16:
            limit += inputs.abs().amax(1, keepdim=True) / LARGEST_FIXED / 2 * values.abs().sum(1)
        found = dispatch.quant_matmul(x, prepared)
        assert found.shape == (count, num_rows) and found.dtype == torch.float32
        is_near = (found - inputs @ values.T).abs() <= limit
        assert bool(is_near[:, is_finite].all()), f"{count} tokens"
        assert not bool(found[:, ~is_finite].isfinite().any()), f"{count} tokens"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
@pytest.mark.parametrize("shape", [(1, 256), (37, 768)])
def test_blocks_multiply_as_the_reference(
    isa: str, ggml_type: GgmlType, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_products_agree(random_blocks(ggml_type, *shape, row_map=True), dtype)


@pytest.mark.parametrize(
    "ggml_type",
    [GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1, GgmlType.Q8_0, GgmlType.IQ4_NL],
)
@pytest.mark.parametrize("columns", [32, 288, 896])
def test_rows_may_end_in_the_middle_of_a_chunk(isa: str, ggml_type: GgmlType, columns: int) -> None:
    assert_products_agree(random_blocks(ggml_type, 11, columns), torch.float32, (1, 2, 5, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("columns", "group_size"), [(96, 32), (320, 64), (640, 128), (288, 96), (352, 352)])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_affine_groups_multiply_as_the_reference(
    isa: str, columns: int, group_size: int, act_order: bool, scale_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    weight = random_affine(29, columns, group_size, act_order=act_order, scale_dtype=scale_dtype)
    assert_products_agree(weight, dtype, (1, 3, 8, 17))


@pytest.mark.parametrize("storage", [GgmlType.Q8_0, GgmlType.Q6_K, None])
@pytest.mark.parametrize(("num_rows", "columns"), [(1, 1280), (48, 768), (545, 1024)])
def test_prompts_multiply_as_the_reference(isa: str, storage: GgmlType | None, num_rows: int, columns: int) -> None:
    """On both sides of what a tile, a panel, a chunk of columns and a block of rows hold."""
    weight = random_affine(num_rows, columns, 128) if storage is None else random_blocks(storage, num_rows, columns)
    assert_products_agree(weight, torch.bfloat16, (16, 31, 130))


def test_more_tokens_than_a_block_holds(isa: str) -> None:
    assert_products_agree(random_blocks(GgmlType.Q4_0, 33, 96), torch.bfloat16, (512, 513, 600))


def test_scales_of_one_group_may_be_a_transposed_view(isa: str) -> None:
    weight = random_affine(24, 128, 128)
    view = weight.scales.T.contiguous().T  # (24, 1), as GPTQ and AWQ files give it; its last stride is 24
    assert_products_agree(replace(weight, scales=view), torch.float32, (1, 9))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 15, 64, 271, 515])
def test_dense_rows_of_any_length_multiply_as_the_reference(isa: str, stored: torch.dtype, columns: int) -> None:
    data = torch.randn(19, columns).to(stored)
    row_map = torch.arange(19).flip(0)
    for dtype in DTYPES:
        assert_products_agree(DenseWeight(data, row_map), dtype)


@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
def test_decoded_values_are_the_reference_up_to_one_rounding(isa: str, ggml_type: GgmlType) -> None:
    """Products with a shift are fused here and rounded twice in ggml; without a shift the bits are equal."""
    weight = random_blocks(ggml_type, 13, 512, row_map=True)
    expected = reference.dequantize(weight)
    found = decoded(weight)
    shifted = (GgmlType.Q4_1, GgmlType.Q5_1, GgmlType.Q2_K, GgmlType.Q4_K, GgmlType.Q5_K)
    if ggml_type in shifted:
        torch.testing.assert_close(found, expected, rtol=2e-7, atol=2e-7)
    else:
        assert torch.equal(found, expected)


def test_decoded_affine_and_dense_values_are_exact(isa: str) -> None:
    for act_order in (False, True):
        weight = random_affine(7, 256, 64, act_order=act_order)
        values = reference.dequantize(weight)
        order = torch.argsort(weight.g_idx, stable=True) if weight.g_idx is not None else torch.arange(256)
        assert torch.equal(decoded(weight), values[:, order])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        data = torch.randn(5, 37).to(dtype)
        assert torch.equal(decoded(DenseWeight(data)), data.float())


def decoded(weight: Weight) -> torch.Tensor:
    library = native.load()
    assert isinstance(library, native.Library)
    matrix = native.make_matrix(weight, library)
    panel = torch.empty(matrix.shape)
    native.decode(matrix, 0, matrix.shape[0], panel)
    return panel


def test_strided_rows_and_columns_are_read_where_they_lie(isa: str) -> None:
    whole = torch.randn(40, 96).half()
    assert_products_agree(DenseWeight(whole[::2, 32:]), torch.float32, (1, 9))
    assert_products_agree(DenseWeight(whole.T), torch.float32, (1, 9))
    blocks = random_blocks(GgmlType.Q4_0, 10, 128)
    assert_products_agree(BlockWeight(blocks.blocks[1:7, 18:54], GgmlType.Q4_0, 64), torch.float32, (1, 9))


def test_mapped_rows_are_not_copied_for_exact_products(isa: str) -> None:
    weight = random_blocks(GgmlType.Q4_K, 8, 256, row_map=True)
    prepared = dispatch.prepare(weight, "cpu", torch.float32)
    assert prepared.matrix is not None
    assert prepared.matrix.matrix.data == weight.blocks.data_ptr()


def test_nothing_is_written_beside_the_result(isa: str) -> None:
    """Rows of 31 and a guard of sentinels around the output of every number of tokens."""
    library = native.load()
    assert isinstance(library, native.Library)
    weight = random_blocks(GgmlType.Q5_0, 31, 64)
    dense = native.make_matrix(DenseWeight(torch.randn(31, 64).bfloat16()), library, is_exact=False)
    for matrix in (native.make_matrix(weight, library), native.make_strips([weight], library), dense):
        for count in (1, 2, 3, 8, 9, 16, 17, 40):
            out = torch.full((count + 2, 40), -7.0)
            x, at = torch.randn(count, 64), out[1:, 4:].data_ptr()
            library.functions.qlocal_matmul(library.isa, matrix.matrix, x.data_ptr(), 64, count, None, at, 40)
            assert torch.equal(out[1 : count + 1, 4:35], native.matmul(x, matrix))
            out[1 : count + 1, 4:35] = -7.0
            assert bool((out == -7.0).all())


@pytest.fixture
def before_a_hole() -> Iterator[memoryview]:
    """64 KB of memory, after which any access ends the process."""
    size = 1 << 16
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.mprotect(address + size, mmap.PAGESIZE, 0) == 0
    yield memoryview(memory)[:size]
    assert libc.mprotect(address + size, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
def test_nothing_is_read_past_the_last_block(isa: str, ggml_type: GgmlType, before_a_hole: memoryview) -> None:
    weight = random_blocks(ggml_type, 9, 256)
    blocks = at_the_end(weight.blocks, before_a_hole)
    assert_products_agree(BlockWeight(blocks, ggml_type, 256), torch.float32, (1, 8, 9))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [3, 61])
def test_nothing_is_read_past_the_last_float(
    isa: str, stored: torch.dtype, columns: int, before_a_hole: memoryview
) -> None:
    data = at_the_end(torch.randn(9, columns).to(stored), before_a_hole)
    for dtype in DTYPES:
        assert_products_agree(DenseWeight(data), dtype, (1, 8, 9))


def at_the_end(tensor: torch.Tensor, memory: memoryview) -> torch.Tensor:
    """Return a copy whose last byte is the last one of `memory`."""
    place = torch.frombuffer(memory, dtype=tensor.dtype, offset=len(memory) - tensor.nbytes)
    return place.view(tensor.shape).copy_(tensor)


def test_threads_do_not_change_the_result(isa: str) -> None:
    weight = random_blocks(GgmlType.Q6_K, 1021, 512)
    prepared = dispatch.prepare(weight, "cpu", torch.bfloat16)
    inputs = [torch.randn(count, 512) for count in (1, 4, 20, 70)]
    native.set_threads(1)
    alone = [dispatch.quant_matmul(x, prepared) for x in inputs]
    try:
        for count in (2, 3, 5):
            native.set_threads(count)
            for _ in range(20):
                for x, expected in zip(inputs, alone, strict=True):
                    assert torch.equal(dispatch.quant_matmul(x, prepared), expected)
    finally:
        native.set_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_scales_stay_visible(isa: str, dtype: torch.dtype) -> None:
    """A corrupt block must not become a plausible number."""
    weight = random_blocks(GgmlType.Q8_0, 3, 64)
    weight.blocks[1, :2] = torch.tensor([0x00, 0x7E], dtype=torch.uint8)  # NaN
    result = dispatch.quant_matmul(torch.randn(1, 64), dispatch.prepare(weight, "cpu", dtype))
    assert torch.isnan(result[0, 1]) and bool(torch.isfinite(result[0, [0, 2]]).all())


def test_a_group_of_odd_size_is_left_to_the_reference(isa: str) -> None:
    weight = random_affine(5, 80, 16)
    prepared = dispatch.prepare(weight, "cpu", torch.float32)
    assert dispatch.kernel_name(prepared) == "reference"
    assert prepared.reason == "its group size 16 is no multiple of 32"
    x = torch.randn(2, 80)
    torch.testing.assert_close(dispatch.quant_matmul(x, prepared), x @ reference.dequantize(weight).T)


def test_uneven_groups_are_left_to_the_reference(isa: str) -> None:
    even = random_affine(5, 64, 32)
    g_idx = torch.cat([torch.zeros(33), torch.ones(31)]).to(torch.int32)
    weight = AffineWeight(even.codes, even.scales, even.zero_points, 32, g_idx)
    prepared = dispatch.prepare(weight, "cpu", torch.float32)
    assert prepared.reason == "its groups differ in size"
    x = torch.randn(1, 64)
    torch.testing.assert_close(dispatch.quant_matmul(x, prepared), x @ reference.dequantize(weight).T)
