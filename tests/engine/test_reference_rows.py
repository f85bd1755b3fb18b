"""Distributions that are kept in a file, and how far another model is from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlocal.engine import reference_rows
from qlocal.protocol import Sampling
from qlocal.weights import DenseWeight
from tests.engine.running import VOCAB, engine_of, request, run
from tests.memory_checkpoint import MemoryCheckpoint, random_ids
from tests.naive_model import naive_logits

PROMPT, ANSWER = random_ids(VOCAB, 30), random_ids(VOCAB, 90)
TOP = Sampling(top_logprobs=2)


def disturbed(checkpoint: MemoryCheckpoint) -> MemoryCheckpoint:
    """Another variant of the same model."""
    other = MemoryCheckpoint("qwen2")
    name = "model.layers.0.mlp.down_proj.weight"
    other.values[name] = checkpoint.values[name] * 1.5
    other.weights[name] = DenseWeight(other.values[name])
    return other


def test_two_variants_are_compared_over_the_whole_vocabulary(tmp_path: Path) -> None:
    qwen = MemoryCheckpoint("qwen2")
    other = disturbed(qwen)
    rows = str(tmp_path / "a.rows")
    ids = PROMPT + ANSWER
    # Chunks of 16 tokens: rows come in several steps.
    first = run(engine_of(qwen, prefill_chunk=16), request("a", ids, 0, TOP, scored_from=30, keep_rows=rows))["a"]
    second = run(engine_of(other, prefill_chunk=16), request("a", ids, 0, TOP, scored_from=30, against_rows=rows))["a"]
    assert first.started is not None and second.started is not None
    assert all(entry.kl is None for entry in first.started.prompt_logprobs)
    p = naive_logits(qwen.values, qwen.config, ids)[29:-1].double().log_softmax(-1)
    q = naive_logits(other.values, other.config, ids)[29:-1].double().log_softmax(-1)
    forward, reverse = (p.exp() * (p - q)).sum(-1).tolist(), (q.exp() * (q - p)).sum(-1).tolist()
    entries = second.started.prompt_logprobs
    assert [entry.token_id for entry in entries] == ANSWER
    assert [entry.kl for entry in entries] == pytest.approx(forward, rel=1e-3, abs=1e-6)
    assert [entry.kl_reverse for entry in entries] == pytest.approx(reverse, rel=1e-3, abs=1e-6)
    assert max(forward) > 1e-4
    assert reference_rows.num_rows(Path(rows)) == len(ANSWER)


def test_a_model_is_no_distance_from_itself(tmp_path: Path) -> None:
    engine = engine_of(MemoryCheckpoint("qwen2"))
    rows = str(tmp_path / "a.rows")
    run(engine, request("a", PROMPT + ANSWER, 0, TOP, scored_from=30, keep_rows=rows))
    again = run(engine, request("b", PROMPT + ANSWER, 0, TOP, scored_from=30, against_rows=rows))["b"]
    assert again.started is not None
    assert max(entry.kl or 0.0 for entry in again.started.prompt_logprobs) < 1e-9


@pytest.mark.parametrize("columns", [(7, 5), (5, 7)])
def test_vocabularies_padded_to_different_sizes_are_compared_where_both_have_ids(
    tmp_path: Path, columns: tuple[int, int]
) -> None:
    path = tmp_path / "a.rows"
    a, b = torch.randn(3, columns[0]), torch.randn(3, columns[1])
    reference_rows.begin(path, columns[0])
    reference_rows.append(path, a)
    found = reference_rows.divergences(path, 0, b, columns[1])
    p, q = a[:, :5].double().log_softmax(-1), b[:, :5].double().log_softmax(-1)
    assert [d.kl for d in found] == pytest.approx((p.exp() * (p - q)).sum(-1).tolist())


def test_files_that_do_not_fit_are_refused_and_the_next_request_is_answered(tmp_path: Path) -> None:
    engine = engine_of(MemoryCheckpoint("qwen2"))
    short, nonsense = tmp_path / "short.rows", tmp_path / "nonsense.rows"
    run(engine, request("a", [*PROMPT, 1, 2], 0, TOP, scored_from=30, keep_rows=str(short)))
    nonsense.write_bytes(b"nonsense")
    for files, reason in (
        ({"against_rows": str(short)}, "distributions of 2 tokens, expected 90"),
        ({"against_rows": str(nonsense)}, "holds no reference distributions"),
        ({"against_rows": str(tmp_path / "gone")}, "No such file"),
        ({"keep_rows": str(tmp_path / "no" / "folder")}, "No such file"),
    ):
        answer = run(engine, request("a", PROMPT + ANSWER, 0, TOP, scored_from=30, **files))["a"]
        assert answer.finished is not None and reason in str(answer.finished.message)
    assert run(engine, request("a", PROMPT, 3))["a"].reason == "length"


def test_a_full_disk_ends_the_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, logits: torch.Tensor) -> None:
        raise OSError(28, "No space left on device")

    engine = engine_of(MemoryCheckpoint("qwen2"), prefill_chunk=16)
    monkeypatch.setattr(reference_rows, "append", full)
    keeping = request("a", PROMPT + ANSWER, 0, TOP, scored_from=30, keep_rows=str(tmp_path / "a.rows"))
    answers = run(engine, keeping, request("b", PROMPT, 3))
    assert "No space left" in str(answers["a"].finished and answers["a"].finished.message)
    assert answers["b"].reason == "length"
    assert engine.usage().free_blocks == engine.usage().total_blocks
