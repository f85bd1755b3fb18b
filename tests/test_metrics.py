"""Distances between models, against formulas written out over whole logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlocal.errors import UsageError
from qlocal.metrics import bootstrap_interval, evaluate, forward_logits, take_chunks
from tests.layers.test_decoder import decoder_of
from tests.memory_checkpoint import MemoryCheckpoint, random_ids


def test_a_model_has_no_distance_to_itself() -> None:
    decoder = decoder_of(MemoryCheckpoint("qwen2"))
    result = evaluate(decoder, [random_ids(320, 90, seed=s) for s in range(3)], decoder)
    assert result.mean_kl == pytest.approx(0.0, abs=1e-6)
    assert result.top1 == 1.0
    assert result.ppl == result.ppl_source
    assert result.num_predicted == 3 * 89


def test_measures_are_those_of_the_definition() -> None:
    source, model = (decoder_of(MemoryCheckpoint("qwen2", seed=seed)) for seed in (0, 1))
    chunks = [random_ids(320, 100, seed=s) for s in range(4)]
    kl, nll, same = [], 0.0, []
    for chunk in chunks:
        p, q = (forward_logits(d, chunk)[:-1].double().log_softmax(-1) for d in (source, model))
        kl.append((p.exp() * (p - q)).sum(-1).numpy())
        nll -= float(q.gather(1, torch.tensor(chunk[1:])[:, None]).sum())
        same.append((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    result = evaluate(model, chunks, source)
    every = np.concatenate(kl)
    assert result.mean_kl == pytest.approx(every.mean(), rel=1e-4)
    assert result.median_kl == pytest.approx(np.median(every), rel=1e-4)
    assert result.p99_kl == pytest.approx(np.percentile(every, 99), rel=1e-4)
    assert result.top1 == pytest.approx(np.mean(same))
    assert result.ppl == pytest.approx(math.exp(nll / (4 * 99)), rel=1e-4)
    assert result.interval is not None and result.mean_kl is not None
    assert result.interval[0] < result.mean_kl < result.interval[1]


def test_without_a_reference_there_is_perplexity_alone() -> None:
    progress: list[tuple[int, int]] = []
    decoder = decoder_of(MemoryCheckpoint("llama"))
    result = evaluate(decoder, [random_ids(320, 10)] * 2, on_chunk=lambda done, total: progress.append((done, total)))
    assert result.to_json().keys() == {"num_chunks", "num_predicted", "ppl"}
    assert result.num_chunks == 2
    assert progress == [(1, 2), (2, 2)]


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"tie_word_embeddings": False})
    checkpoint.values["lm_head.weight"].zero_()
    assert evaluate(decoder_of(checkpoint), [random_ids(320, 50)]).ppl == pytest.approx(320, rel=1e-5)


def test_chunks_are_taken_evenly_from_every_text() -> None:
    texts = [list(range(100)), list(range(1000, 1035))]
    assert take_chunks(texts, 3, 10) == [
        list(range(10)),
        list(range(50, 60)),
        list(range(1000, 1010)),
    ]


def test_a_text_that_is_too_short_is_refused_with_its_length() -> None:
    with pytest.raises(UsageError, match=r"too short for 4 chunks of 10 tokens \(tokens in each file: 35\)"):
        take_chunks([list(range(35))], 4, 10)


def test_the_interval_covers_the_mean_and_shrinks_with_more_chunks() -> None:
    values = np.random.default_rng(1).normal(1.0, 0.1, 400).tolist()
    few, many = bootstrap_interval(values[:10]), bootstrap_interval(values)
    assert few[0] < 1.0 < few[1] and many[0] < 1.0 < many[1]
    assert many[1] - many[0] < few[1] - few[0]
    assert bootstrap_interval(values) == many
