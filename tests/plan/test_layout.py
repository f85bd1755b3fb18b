"""The bytes of a weight in memory are those that the kernels really take, padding included."""

from __future__ import annotations

import pytest

from qlocal.ggml_types import GgmlType
from qlocal.kernels import native
from qlocal.kernels.triton.layout import PackedWeight
from qlocal.plan.layout import LARGE_PAGE, Held, Matrix, in_pages, on_card, on_cpu
from qlocal.weights import AffineWeight, BlockWeight
from tests.kernels.triton.weights import KINDS, make
from tests.kernels.weights import QUANTIZED_TYPES, random_affine, random_blocks


def matrix_of(weight: AffineWeight | BlockWeight) -> Matrix:
    rows, columns = weight.shape
    if isinstance(weight, AffineWeight):
        return Matrix(rows, columns, None, weight.group_size, has_order=weight.g_idx is not None)
    return Matrix(rows, columns, weight.ggml_type, has_row_map=weight.row_map is not None)


@pytest.fixture
def library() -> native.Library:
    found = native.load()
    if isinstance(found, native.Absent):
        pytest.skip(found.reason)
    return found


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
def test_strips_of_blocks_are_counted_with_their_padding(
    ggml_type: GgmlType, rows: int, library: native.Library
) -> None:
    for columns in (256, 768):
        weight = random_blocks(ggml_type, rows, columns)
        made = native.make_strips([weight], library)
        assert on_cpu([matrix_of(weight)], is_exact=False) == Held(made.data.nbytes)


@pytest.mark.parametrize("columns", [32, 96, 416])
def test_units_that_fill_no_record_are_counted_too(columns: int, library: native.Library) -> None:
    weight = random_blocks(GgmlType.Q4_0, 20, columns)
    assert on_cpu([matrix_of(weight)], is_exact=False) == Held(native.make_strips([weight], library).data.nbytes)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("act_order", [False, True])
def test_strips_and_records_of_groups_are_counted(group_size: int, act_order: bool, library: native.Library) -> None:
    weight = random_affine(37, 384, group_size, act_order=act_order)
    order = 8 * 384 if act_order else 0
    strips, records = native.make_strips([weight], library), native.make_matrix(weight, library)
    assert on_cpu([matrix_of(weight)], is_exact=False) == Held(strips.data.nbytes + order)
    assert on_cpu([matrix_of(weight)], is_exact=True) == Held(records.data.nbytes + order)


def test_parts_with_one_input_share_the_last_strip(library: native.Library) -> None:
    weights = [random_blocks(GgmlType.Q4_K, rows, 512, seed=rows) for rows in (32, 24, 8)]
    made = native.make_strips(weights, library)
    assert on_cpu([matrix_of(w) for w in weights], is_exact=False) == Held(made.data.nbytes)


def test_parts_of_other_types_are_joined_only_with_their_like() -> None:
    kinds = (GgmlType.Q4_K, GgmlType.Q4_K, GgmlType.Q6_K)
    together = on_cpu([Matrix(8, 256, kind) for kind in kinds], is_exact=False)
    alone = [on_cpu([Matrix(rows, 256, kind)], is_exact=False) for rows, kind in ((16, kinds[0]), (8, kinds[2]))]
    assert together == alone[0] + alone[1]


def test_exact_products_read_single_blocks_from_the_map_and_copy_joined_ones() -> None:
    one = Matrix(8, 256, GgmlType.Q4_K)
    assert on_cpu([one], is_exact=True) == Held(0, 8 * 144)
    assert on_cpu([one, one], is_exact=True) == Held(16 * 144)


def test_memory_from_a_large_page_on_is_counted_in_large_pages() -> None:
    assert in_pages(LARGE_PAGE - 1) == LARGE_PAGE - 1
    assert in_pages(LARGE_PAGE) == LARGE_PAGE
    assert in_pages(LARGE_PAGE + 1) == 2 * LARGE_PAGE


@pytest.mark.parametrize("name", KINDS)
def test_packed_weights_of_a_card_are_counted_with_their_padding(name: str) -> None:
    weight, packed = make(name)
    assert on_card([matrix_of(weight)]) == Held(bytes_of(packed))


def bytes_of(packed: PackedWeight) -> int:
    return packed.num_bytes + (0 if packed.column_order is None else packed.column_order.nbytes)


def test_what_has_no_kernel_on_a_card_is_counted_as_it_is_stored() -> None:
    assert on_card([Matrix(7, 64, GgmlType.Q5_0)]) == Held(7 * 2 * 22)
    assert on_card([Matrix(7, 64, GgmlType.BF16)]) == Held(7 * 64 * 2)
    assert on_card([Matrix(7, 64, None, 16)]) == Held(7 * (32 + 4 * 3))
