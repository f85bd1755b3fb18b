"""How far a model reaches, and the least that positions are stretched for a context."""

from __future__ import annotations

from typing import Any

import pytest

from qlocal.errors import PlanError
from qlocal.models import llama, qwen2, rope
from qlocal.models.base import ModelConfig
from qlocal.models.long_context import context_limit, stretched, stretched_limit, yarn_factor
from qlocal.plan import make_plan
from tests import tiny
from tests.memory_checkpoint import MemoryCheckpoint

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}


def config_of(**overrides: Any) -> ModelConfig:
    return tiny.tiny_config("qwen2", {"max_position_embeddings": 1000, **overrides})


@pytest.mark.parametrize(("context", "factor"), [(10, 1.0), (1000, 1.0), (1500, 1.5), (4000, 4.0)])
def test_the_factor_of_a_file_is_the_most_and_the_context_says_how_much(context: int, factor: float) -> None:
    config = config_of(rope_scaling=YARN)
    assert context_limit(config) == 4000
    assert yarn_factor(config, qwen2.ARCHITECTURE, context) == factor
    used = stretched(config, factor)
    assert used.rope_scaling is not None and used.rope_scaling.factor == factor
    assert (rope.inverse_frequencies(used) == rope.inverse_frequencies(config_of())) == (factor == 1.0)
    assert rope.attention_factor(stretched(config, 1.0)) == 1.0


def test_a_stated_attention_factor_belongs_to_its_factor() -> None:
    config = config_of(rope_scaling={**YARN, "attention_factor": 1.2})
    assert yarn_factor(config, qwen2.ARCHITECTURE, 1500) is None
    assert stretched(config, None) is config


def test_a_model_whose_makers_document_yarn_reaches_further_only_when_asked() -> None:
    config = config_of(max_position_embeddings=32768)
    assert (context_limit(config), stretched_limit(config, qwen2.ARCHITECTURE)) == (32768, 131072)
    assert yarn_factor(config, qwen2.ARCHITECTURE, 32768) is None
    assert yarn_factor(config, qwen2.ARCHITECTURE, 49152) == 1.5
    used = stretched(config, 1.5).rope_scaling
    assert used is not None and (used.kind, used.factor, used.original_max_position_embeddings) == ("yarn", 1.5, 32768)


def test_other_models_and_other_scalings_stay_as_they_are() -> None:
    wide = config_of(max_position_embeddings=131072)
    assert stretched_limit(wide, qwen2.ARCHITECTURE) == 131072
    assert stretched_limit(config_of(max_position_embeddings=32768), llama.ARCHITECTURE) == 32768
    linear = config_of(rope_scaling={"type": "linear", "factor": 4.0})
    assert yarn_factor(linear, qwen2.ARCHITECTURE, 900) is None


def test_a_plan_stretches_for_its_own_context_and_says_so_when_it_cannot() -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"max_position_embeddings": 32768})
    assert make_plan(checkpoint, ["cpu"], slots=1).yarn_factor is None
    plan = make_plan(checkpoint, ["cpu"], 65536, slots=1)
    assert (plan.max_context, plan.yarn_factor) == (65536, 2.0)
    with pytest.raises(PlanError, match="140000 tokens is asked for, the model was made for 131072"):
        make_plan(checkpoint, ["cpu"], 140000)
