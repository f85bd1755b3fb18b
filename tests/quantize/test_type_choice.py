import itertools
import random
from collections.abc import Sequence

import pytest

from qlocal.errors import PlanError
from qlocal.ggml_types import GgmlType
from qlocal.models import ARCHITECTURES
from quantize.type_choice import Sensitivity, candidate_types, check_room, choose, smallest_types
from tests.quantize.test_recipe import QWEN2_72B, config_of

SMALL = (GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q8_0)


def sensitivity(name: str, rows: int, kl: float, errors: Sequence[float] = (4e-3, 1e-3, 2e-5)) -> Sensitivity:
    return Sensitivity(name, (rows, 64), GgmlType.Q4_0, kl, dict(zip(SMALL, errors, strict=True)))


def cost(tensors: Sequence[Sensitivity], types: Sequence[GgmlType]) -> tuple[int, float]:
    chosen = list(zip(tensors, types, strict=True))
    return sum(s.num_bytes(t) for s, t in chosen), sum(s.kl_as(t) for s, t in chosen)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_fits_and_is_about_the_best_of_all(seed: int) -> None:
    rng = random.Random(seed)
    tensors = [sensitivity(str(i), 32 * rng.randint(1, 8), 10 ** rng.uniform(-5, -2)) for i in range(6)]
    every = [cost(tensors, types) for types in itertools.product(SMALL, repeat=len(tensors))]
    smallest, largest = min(size for size, _ in every), max(size for size, _ in every)
    for share in (0.0, 0.3, 0.6, 1.0):
        limit = int(smallest + share * (largest - smallest))
        choice = choose(tensors, limit)
        size, kl = cost(tensors, [choice.types[t.name] for t in tensors])
        assert size <= limit
        assert kl == pytest.approx(choice.kl)
        best = min(found for size, found in every if size <= limit)
        # The walk down the hulls is at most one step behind the best there is.
        assert kl <= best + max(t.kl for t in tensors)
        assert share not in (0.0, 1.0) or kl == pytest.approx(best)


def test_the_tensor_that_is_worth_most_a_byte_gets_more_bits_first() -> None:
    tensors = [sensitivity("dull", 64, 1e-4), sensitivity("keen", 64, 1e-2), sensitivity("keen and large", 640, 2e-2)]
    smallest = sum(t.num_bytes(GgmlType.Q4_0) for t in tensors)
    step = tensors[0].num_bytes(GgmlType.Q5_0) - tensors[0].num_bytes(GgmlType.Q4_0)
    types = choose(tensors, smallest + step).types
    assert types == {"dull": GgmlType.Q4_0, "keen": GgmlType.Q5_0, "keen and large": GgmlType.Q4_0}


def test_a_type_that_is_larger_and_no_better_is_never_chosen() -> None:
    tensors = [sensitivity("a", 64, 1e-3, errors=(4e-3, 5e-3, 4e-3)), sensitivity("b", 64, 0.0)]
    types = choose(tensors, 1 << 30).types
    assert types == {"a": GgmlType.Q4_0, "b": GgmlType.Q4_0}


def test_the_smallest_file_of_a_72b_keeps_small_tensors_and_routers_out_of_it() -> None:
    types = smallest_types(ARCHITECTURES["qwen2"], config_of(QWEN2_72B))
    assert set(types) >= {"token_embd.weight", "output.weight", "blk.79.ffn_down.weight"}
    assert not any("norm" in name or "bias" in name for name in types)
    assert types["blk.0.ffn_up.weight"] is GgmlType.Q4_K  # 8192 columns
    assert types["blk.0.ffn_down.weight"] is GgmlType.Q4_0  # 29568, unpadded, are no multiple of 256


def test_types_are_offered_where_their_blocks_divide_a_row() -> None:
    assert candidate_types(896)[0] is GgmlType.Q4_0
    assert GgmlType.Q6_K not in candidate_types(896)
    assert candidate_types(100) == []


def test_a_file_that_cannot_be_so_small_is_refused_with_both_sizes() -> None:
    with pytest.raises(PlanError, match=r"2,000 bytes .* --target-size is 1,999"):
        check_room(2000, 1999)
