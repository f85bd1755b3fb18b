"""Real models, from the folder that QLOCAL_REAL_MODELS names, against logits of transformers in float32.

`tests/golden/logits/` has the five largest logits of every token of a sentence, and the greedy continuation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qlocal.engine.loading import load_engine
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.loader import load_model
from qlocal.metrics import forward_logits
from qlocal.plan import make_plan
from qlocal.protocol import Load
from tests.engine.running import request, run
from tests.real_models import real_model

pytestmark = pytest.mark.real
GOLDEN = Path(__file__).parents[1] / "golden" / "logits"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    return real_model(request.param), json.loads((GOLDEN / f"{request.param}.json").read_text())


def test_logits_are_those_of_transformers(model: tuple[Path, dict[str, Any]]) -> None:
    path, golden = model
    checkpoint = open_checkpoint(path)
    decoder = load_model(checkpoint, make_plan(checkpoint, ["cpu"], max_context=256, slots=1, dtype="float32"))
    logits = forward_logits(decoder, golden["input_ids"])
    expected = torch.tensor(golden["top_logits"])
    found = logits.gather(1, torch.tensor(golden["top_ids"]))
    torch.testing.assert_close(found, expected, atol=3e-4, rtol=0.0)
    assert torch.equal(logits.argmax(-1), torch.tensor(golden["top_ids"])[:, 0])


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["one", "split"])
def test_greedy_answer_is_that_of_transformers(model: tuple[Path, dict[str, Any]], devices: list[str]) -> None:
    path, golden = model
    engine = load_engine(Load(str(path), devices, max_context=256, dtype="float32"), lambda _: None)
    ids, expected = golden["input_ids"], golden["greedy"]
    num_tokens = engine.vocab_size
    answers = run(engine, *(request(f"r{i}", ids[i:], 16, num_tokens=num_tokens) for i in range(4)))
    assert answers["r0"].token_ids == expected
    again = run(engine, request("again", ids, 16, num_tokens=num_tokens))["again"]
    assert again.token_ids == expected
    assert again.started is not None and again.started.cached_tokens == len(ids) - 1
