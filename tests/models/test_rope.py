from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlocal.models import rope
from qlocal.models.config_fields import parse_config
from qlocal.models.qwen2 import ARCHITECTURE
from tests import tiny

VECTORS = sorted((Path(__file__).parents[1] / "golden" / "rope").glob("*.json"))


def load(path: Path) -> tuple[dict[str, Any], Any]:
    vector = json.loads(path.read_text())
    scaling = vector["rope_scaling"]
    raw = tiny.raw_config("qwen2", {"head_dim": vector["head_dim"], "rope_theta": vector["rope_theta"]})
    raw["rope_scaling"] = scaling
    return vector, parse_config(raw, ARCHITECTURE, "config.json")


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_frequencies_and_attention_factor_equal_the_vectors(path: Path) -> None:
    vector, config = load(path)
    assert rope.inverse_frequencies(config) == pytest.approx(vector["inv_freq_float64"], rel=1e-12)
    assert rope.attention_factor(config) == pytest.approx(vector["attention_factor"], rel=1e-12)


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_cosines_and_sines_equal_the_vectors_at_every_position(path: Path) -> None:
    vector, config = load(path)
    frequencies, factor = rope.inverse_frequencies(config), rope.attention_factor(config)
    for row, position in enumerate(vector["positions"]):
        for column, dim in enumerate(vector["dims"]):
            angle = position * frequencies[dim]
            assert factor * math.cos(angle) == pytest.approx(vector["cos_float64"][row][column], abs=2e-8)
            assert factor * math.sin(angle) == pytest.approx(vector["sin_float64"][row][column], abs=2e-8)


def test_llama3_divisors_reproduce_its_frequencies() -> None:
    vector, config = load(next(p for p in VECTORS if p.stem == "llama3.1"))
    divisors = rope.llama3_divisors(config)
    raw = tiny.raw_config("qwen2", {"head_dim": config.head_dim, "rope_theta": config.rope_theta})
    raw["rope_scaling"] = {"rope_type": "factors", "factors": tuple(divisors)}
    from_factors = parse_config(raw, ARCHITECTURE, "config.json")
    assert rope.inverse_frequencies(from_factors) == pytest.approx(vector["inv_freq_float64"], rel=1e-12)
    assert divisors[0] == 1.0 and divisors[-1] == pytest.approx(8.0)


def test_a_given_attention_factor_wins_over_the_formula() -> None:
    _, config = load(next(p for p in VECTORS if "yarn" in p.stem))
    assert config.rope_scaling is not None
    config = replace(config, rope_scaling=replace(config.rope_scaling, attention_factor=1.0))
    assert rope.attention_factor(config) == 1.0
