"""What a request gets, alone or in company, and what is left behind when it ends."""

from __future__ import annotations

from collections import Counter

import pytest

from qlocal.protocol import Finished, Queued, Sampling, Started
from qlocal.weights import DenseWeight
from tests.engine.running import VOCAB, Answer, collect, engine_of, request, run
from tests.memory_checkpoint import MemoryCheckpoint, random_ids
from tests.naive_model import naive_logits

MODEL_TYPES = ("qwen2", "llama", "mixtral")


@pytest.fixture(scope="module", params=MODEL_TYPES)
def checkpoint(request: pytest.FixtureRequest) -> MemoryCheckpoint:
    return MemoryCheckpoint(request.param)


@pytest.fixture(scope="module")
def qwen() -> MemoryCheckpoint:
    return MemoryCheckpoint("qwen2")


def naive_greedy(checkpoint: MemoryCheckpoint, input_ids: list[int], count: int) -> list[int]:
    token_ids = list(input_ids)
    for _ in range(count):
        logits = naive_logits(checkpoint.values, checkpoint.config, token_ids)[-1]
        token_ids.append(int(logits.argmax()))
    return token_ids[len(input_ids) :]


def test_greedy_answer_is_that_of_the_naive_model(checkpoint: MemoryCheckpoint) -> None:
    prompt = random_ids(VOCAB, 9)
    answer = run(engine_of(checkpoint, block_size=4), request("a", prompt, 5))["a"]
    assert answer.token_ids == naive_greedy(checkpoint, prompt, 5)
    assert answer.reason == "length"
    assert answer.finished is not None and answer.finished.completion_tokens == 5


def test_company_does_not_change_an_answer(checkpoint: MemoryCheckpoint) -> None:
    requests = [request(f"r{i}", random_ids(VOCAB, 5 + 9 * i, seed=i), 12) for i in range(8)]
    together = run(engine_of(checkpoint), *requests)
    for one in requests:
        alone = run(engine_of(checkpoint), one)
        assert together[one.request_id].token_ids == alone[one.request_id].token_ids


@pytest.mark.parametrize("prefill_chunk", [1, 7, 512])
def test_the_size_of_prompt_chunks_does_not_change_an_answer(qwen: MemoryCheckpoint, prefill_chunk: int) -> None:
    one = request("a", random_ids(VOCAB, 70), 10)
    expected = run(engine_of(qwen, prefill_chunk=512, block_size=256), one)["a"].token_ids
    assert run(engine_of(qwen, prefill_chunk=prefill_chunk), one)["a"].token_ids == expected


@pytest.mark.parametrize("kv", [None, "q8", "q8,q4"])
def test_a_reused_prefix_gives_the_same_answer_and_is_not_computed_again(
    checkpoint: MemoryCheckpoint, kv: str | None
) -> None:
    engine = engine_of(checkpoint, kv=kv)
    prompt = random_ids(VOCAB, 50)
    first = run(engine, request("a", prompt, 12))["a"]
    second = run(engine, request("b", prompt, 12))["b"]
    assert second.token_ids == first.token_ids
    assert second.started is not None and second.started.cached_tokens == 49
    turn = [*prompt, *first.token_ids, *random_ids(VOCAB, 6, seed=9)]
    continued = run(engine, request("c", turn, 12))["c"]
    assert continued.started is not None and continued.started.cached_tokens == 61
    assert continued.token_ids == run(engine_of(checkpoint, kv=kv), request("c", turn, 12))["c"].token_ids


def test_two_shares_of_one_device_give_the_same_answers(checkpoint: MemoryCheckpoint) -> None:
    requests = [
        request(f"r{i}", random_ids(VOCAB, 20, seed=i), 8, Sampling(temperature=0.0, top_logprobs=3)) for i in range(3)
    ]
    once, twice = (run(engine_of(checkpoint, devices=["cpu"] * n), *requests) for n in (1, 2))
    for one in requests:
        assert once[one.request_id].logprobs == twice[one.request_id].logprobs


def test_sixty_four_requests_pass_through_a_few_blocks(qwen: MemoryCheckpoint) -> None:
    engine = engine_of(qwen, num_blocks=6, slots=8)
    requests = [request(f"r{i}", random_ids(VOCAB, 1 + i, seed=i % 5), 1 + i % 30) for i in range(64)]
    answers = run(engine, *requests)
    assert Counter(answer.reason for answer in answers.values()) == {"length": 64}
    assert all(len(answers[r.request_id].token_ids) == r.max_tokens for r in requests)
    assert engine.usage().free_blocks == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_that_reads_for_nobody_ends_half_way(
    qwen: MemoryCheckpoint, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the readable layers and by the native step. What it had begun is read anew when somebody asks again."""
    monkeypatch.setattr("qlocal.engine.giving_up.LOOK_S", 0.0)
    long, short = request("long", random_ids(VOCAB, 30), 3), request("short", [1, 2, 3], 3)
    expected = run(engine_of(qwen, dtype=dtype), long, short)
    engine = engine_of(qwen, dtype=dtype)
    free = engine.usage().free_blocks
    engine.submit(long)
    asked = 0

    def given_up() -> set[str]:
        nonlocal asked
        asked += 1
        return {"long"} if asked > 1 else set()

    assert engine.step(given_up) == [] and asked == 2
    engine.cancel("long")
    (finished,) = engine.step()
    assert isinstance(finished, Finished) and finished.reason == "cancelled"
    assert engine.usage().free_blocks == free
    again = run(engine, long, short)
    assert {name: answer.token_ids for name, answer in again.items()} == {n: a.token_ids for n, a in expected.items()}


def test_a_step_goes_on_for_who_still_waits(qwen: MemoryCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlocal.engine.giving_up.LOOK_S", 0.0)
    engine = engine_of(qwen)
    engine.submit(request("gone", random_ids(VOCAB, 12), 3))
    engine.submit(request("waits", random_ids(VOCAB, 12, seed=1), 3))
    assert any(isinstance(message, Started) for message in engine.step(lambda: {"gone"}))


def test_a_cancelled_request_frees_its_slot_and_blocks(qwen: MemoryCheckpoint) -> None:
    engine = engine_of(qwen, num_blocks=8, slots=1)
    engine.submit(request("running", random_ids(VOCAB, 60), 40))
    engine.submit(request("waiting", random_ids(VOCAB, 5), 5))
    engine.submit(request("next", random_ids(VOCAB, 5), 5))
    answers: dict[str, Answer] = {}
    for _ in range(4):
        collect(engine.step(), answers)
    assert engine.usage().running == 1
    engine.cancel("running")
    engine.cancel("waiting")
    engine.cancel("unknown")
    answers |= run(engine)
    assert answers["running"].reason == answers["waiting"].reason == "cancelled"
    assert answers["next"].reason == "length"
    assert engine.usage().free_blocks == 8


def test_who_waits_is_told_how_many_are_before_it_whenever_that_changes(qwen: MemoryCheckpoint) -> None:
    engine = engine_of(qwen, slots=1)
    for name in ("running", "gone", "second", "third"):
        engine.submit(request(name, random_ids(VOCAB, 5), 4))

    def told() -> dict[str, int]:
        return {m.request_id: m.ahead for m in engine.step() if isinstance(m, Queued)}

    assert told() == {"gone": 0, "second": 1, "third": 2}
    assert told() == {}
    engine.cancel("gone")
    assert told() == {"second": 0, "third": 1}
    engine.cancel("running")
    assert told() == {"third": 0}
    engine.cancel("second")
    assert told() == {}, "the last one runs"


def test_a_stop_token_ends_the_answer_and_is_not_sent(qwen: MemoryCheckpoint) -> None:
    prompt = random_ids(VOCAB, 9)
    free = run(engine_of(qwen), request("a", prompt, 10))["a"].token_ids
    stop = free[4]
    stopped = run(engine_of(qwen), request("a", prompt, 10, stop_ids=[stop]))["a"]
    assert stopped.token_ids == free[: free.index(stop)]
    assert stopped.reason == "stop"
    assert stopped.finished is not None and stopped.finished.completion_tokens == free.index(stop) + 1


def test_a_short_prompt_does_not_wait_for_a_long_one(qwen: MemoryCheckpoint) -> None:
    engine = engine_of(qwen, prefill_chunk=16)
    engine.submit(request("long", random_ids(VOCAB, 300), 4))
    engine.submit(request("short", random_ids(VOCAB, 8), 4))
    answers: dict[str, Answer] = {}
    while "short" not in answers or answers["short"].finished is None:
        collect(engine.step(), answers)
    assert "long" not in answers


def test_a_seed_gives_the_same_answer_alone_and_in_company(qwen: MemoryCheckpoint) -> None:
    def seeded(i: int) -> Sampling:
        return Sampling(temperature=1.0, top_p=0.9, seed=i)

    requests = [request(f"r{i}", random_ids(VOCAB, 11), 12, seeded(i)) for i in range(4)]
    together = run(engine_of(qwen), *requests)
    for one in requests:
        assert run(engine_of(qwen), one)[one.request_id].token_ids == together[one.request_id].token_ids
    assert len({tuple(answer.token_ids) for answer in together.values()}) == 4


def test_logprobs_are_those_of_the_model(qwen: MemoryCheckpoint) -> None:
    prompt = random_ids(VOCAB, 9)
    sampling = Sampling(temperature=0.0, top_logprobs=2, repetition_penalty=1.5, logit_bias={5: -3.0})
    answer = run(engine_of(qwen), request("a", prompt, 3, sampling))["a"]
    token_ids = prompt + answer.token_ids
    expected = naive_logits(qwen.values, qwen.config, token_ids).log_softmax(-1)
    for at, entry in enumerate(answer.logprobs):
        row = expected[len(prompt) - 1 + at]
        assert entry.token_id == answer.token_ids[at]
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
        assert entry.top_ids == row.topk(2).indices.tolist()
        assert entry.top_logprobs == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_prompt_logprobs_cover_every_token_but_the_first(qwen: MemoryCheckpoint, max_tokens: int) -> None:
    engine = engine_of(qwen, prefill_chunk=16)
    prompt = random_ids(VOCAB, 40)
    run(engine, request("before", prompt, 2))  # a cached prefix must not hide rows
    sampling = Sampling(temperature=0.0, top_logprobs=1)
    answer = run(engine, request("a", prompt, max_tokens, sampling, scored_from=1))["a"]
    assert answer.started is not None and answer.reason == "length"
    assert len(answer.token_ids) == max_tokens
    expected = naive_logits(qwen.values, qwen.config, prompt).log_softmax(-1)
    entries = answer.started.prompt_logprobs
    assert [entry.token_id for entry in entries] == prompt[1:]
    assert [e.logprob for e in entries] == pytest.approx(
        [float(expected[i, t]) for i, t in enumerate(prompt[1:])], abs=1e-4
    )


def test_ids_without_a_token_are_never_chosen(qwen: MemoryCheckpoint) -> None:
    answers = run(
        engine_of(qwen),
        request("greedy", random_ids(50, 9), 20, num_tokens=50),
        request("drawn", random_ids(50, 9), 20, Sampling(temperature=100.0, seed=1), num_tokens=50),
    )
    assert all(token_id < 50 for answer in answers.values() for token_id in answer.token_ids)


def test_output_that_is_not_finite_ends_the_request_and_is_not_remembered() -> None:
    checkpoint = MemoryCheckpoint("qwen2")
    name = "model.embed_tokens.weight"
    table = checkpoint.values[name].clone()
    table[7] = float("nan")
    checkpoint.weights[name] = DenseWeight(table)
    engine = engine_of(checkpoint)
    good, bad = [1, 2, 3], [*range(10, 40), 7, 8]
    answers = run(engine, request("good", good, 6), request("bad", bad, 6))
    assert answers["bad"].reason == "error"
    assert answers["bad"].finished is not None and "not a finite number" in str(answers["bad"].finished.message)
    clean = MemoryCheckpoint("qwen2")
    assert answers["good"].token_ids == run(engine_of(clean), request("good", good, 6))["good"].token_ids
    again = run(engine, request("again", [*bad[:-2], 9], 4))["again"]
    assert again.started is not None and again.started.cached_tokens == 16  # the block before the bad token
    assert engine.usage().free_blocks == engine.usage().total_blocks


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request("a", []), "the prompt is empty"),
        (request("a", [1], 0), "max_tokens is 0"),
        (request("a", [1] * 500, 13), "500 tokens and 13 more for the answer exceed the context of 512"),
        (request("a", [1, 320]), "token id 320 is outside the vocabulary of 320"),
        (request("a", [1], num_tokens=321), "num_tokens is 321"),
        (request("a", [1], sampling=Sampling(temperature=float("nan"))), "temperature is nan"),
        (request("a", [1], sampling=Sampling(top_k=0)), "top_k is 0"),
        (request("a", [1], sampling=Sampling(logit_bias={1: float("inf")})), "logit_bias for token 1 is inf"),
    ],
)
def test_a_request_that_cannot_run_is_answered_with_the_reason(
    qwen: MemoryCheckpoint, wrong: object, message: str
) -> None:
    answer = run(engine_of(qwen), wrong)["a"]  # type: ignore[arg-type]
    assert answer.reason == "error"
    assert answer.finished is not None and message in str(answer.finished.message)


def test_a_request_id_cannot_run_twice_at_once(qwen: MemoryCheckpoint) -> None:
    engine = engine_of(qwen)
    engine.submit(request("a", [1, 2], 5))
    engine.submit(request("a", [1, 2], 5))
    (refused,) = [m for m in engine.step() if getattr(m, "message", None)]
    assert "running already" in str(refused)


def test_a_long_answer_fills_the_context_to_the_last_token(qwen: MemoryCheckpoint) -> None:
    answer = run(engine_of(qwen), request("a", random_ids(VOCAB, 500), 12))["a"]
    assert len(answer.token_ids) == 12


def test_an_answer_is_scored_behind_a_prompt_that_is_in_the_cache(qwen: MemoryCheckpoint) -> None:
    engine = engine_of(qwen, prefill_chunk=16)
    prompt, answer = random_ids(VOCAB, 40), random_ids(VOCAB, 20)
    run(engine, request("before", prompt + answer, 2))
    sampling = Sampling(top_logprobs=2)
    scored = run(engine, request("a", prompt + answer, 0, sampling, scored_from=40))["a"]
    assert scored.started is not None and scored.reason == "length"
    # The row of the prompt's last token says how likely the answer's first one is, so it is computed.
    assert 0 < scored.started.cached_tokens <= 39
    expected = naive_logits(qwen.values, qwen.config, prompt + answer).log_softmax(-1)
    entries = scored.started.prompt_logprobs
    assert [entry.token_id for entry in entries] == answer
    assert [e.logprob for e in entries] == pytest.approx(
        [float(expected[39 + i, t]) for i, t in enumerate(answer)], abs=1e-4
    )


@pytest.mark.parametrize("scored_from", [0, -1, 41])
def test_tokens_that_are_not_there_are_not_scored(qwen: MemoryCheckpoint, scored_from: int) -> None:
    answer = run(engine_of(qwen), request("a", random_ids(VOCAB, 40), 1, scored_from=scored_from))["a"]
    assert answer.finished is not None and "scored_from" in (answer.finished.message or "")
