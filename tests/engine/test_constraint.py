from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qlocal.engine.constraint import MAX_COMPILED, Grammars
from qlocal.errors import GrammarError
from qlocal.protocol import MAX_GRAMMAR_CHARS, Sampling, Submit
from tests.engine.running import GREEDY, VOCAB, Answer, engine_of, request, run
from tests.engine.speculation.test_exactness import Bold
from tests.engine.vocabulary import END, NUM_TOKENS, OTHER, TURN, text, vocabulary
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_pattern": "[ \\n]{1,2}"},
}
JSON = f"start: %json {json.dumps(SCHEMA)}"
DRAWN = Sampling(temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def qwen() -> MemoryCheckpoint:
    return MemoryCheckpoint("qwen2")


def asked(name: str, seed: int = 0, sampling: Sampling = DRAWN, max_tokens: int = 80, **fields: Any) -> Submit:
    plain = request(name, random_ids(VOCAB, 12, seed=seed), max_tokens, sampling, [END, TURN], NUM_TOKENS)
    return replace(plain, **{"grammar": JSON, **fields})


def answers_of(qwen: MemoryCheckpoint, *requests: Submit, **options: Any) -> dict[str, Answer]:
    engine = engine_of(qwen, **options)
    engine.take_vocabulary(vocabulary())
    answers = run(engine, *requests)
    assert engine.usage().free_blocks == engine.usage().total_blocks
    return answers


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(temperature=2.0, top_k=5, seed=1), Sampling(top_p=0.1)])
def test_whatever_is_sampled_follows_the_schema_and_stops_at_its_end(
    qwen: MemoryCheckpoint, sampling: Sampling
) -> None:
    for answer in answers_of(qwen, *(asked(f"r{i}", i, sampling) for i in range(8))).values():
        value = json.loads(text(answer.token_ids))
        assert answer.reason == "stop" and value["name"] in ("Ann", "Bob") and 0 <= value["age"] <= 99


def test_company_without_a_schema_is_not_touched(qwen: MemoryCheckpoint) -> None:
    free = asked("free", 1, grammar=None)
    alone = answers_of(qwen, free)["free"]
    together = answers_of(qwen, asked("held"), free, asked("greedy", 2, GREEDY))
    assert together["free"].token_ids == alone.token_ids
    assert together["held"].token_ids == answers_of(qwen, asked("held"))["held"].token_ids


def test_guesses_change_no_constrained_answer(qwen: MemoryCheckpoint) -> None:
    bold = Bold({n: [ord("{"), ord('"'), 7, END][n % 4 :] for n in range(0, 80, 3)})
    for sampling in (GREEDY, DRAWN):
        plain = answers_of(qwen, asked("a", sampling=sampling))["a"]
        guessed = answers_of(qwen, asked("a", sampling=sampling), speculator=bold)["a"]
        assert guessed.token_ids == plain.token_ids and guessed.reason == "stop"
        assert guessed.finished is not None and guessed.finished.drafted_tokens > 0


def test_only_length_ends_in_the_middle(qwen: MemoryCheckpoint) -> None:
    whole = answers_of(qwen, asked("a"))["a"]
    for max_tokens in range(1, len(whole.token_ids) + 1):
        answer = answers_of(qwen, asked("a", max_tokens=max_tokens))["a"]
        assert answer.token_ids == whole.token_ids[:max_tokens]
        assert answer.reason == ("stop" if max_tokens == len(whole.token_ids) else "length")


def test_the_end_of_turn_waits_for_the_end_of_the_value(qwen: MemoryCheckpoint) -> None:
    eager = Sampling(temperature=0.0, logit_bias={END: 100.0, TURN: 100.0, OTHER: 100.0})
    answer = answers_of(qwen, asked("a", sampling=eager))["a"]
    assert json.loads(text(answer.token_ids))["name"] in ("Ann", "Bob")
    open_ended = answers_of(qwen, asked("a", sampling=eager, grammar='start: "a"+'))["a"]
    assert (text(open_ended.token_ids), open_ended.reason) == ("a", "stop")


def test_a_request_without_stop_ids_ends_with_the_value(qwen: MemoryCheckpoint) -> None:
    answer = answers_of(qwen, asked("a", stop_ids=[]))["a"]
    assert answer.reason == "stop" and json.loads(text(answer.token_ids))


def test_a_begun_answer_is_held_to_its_beginning(qwen: MemoryCheckpoint) -> None:
    begun = list(b'{"name": "Bob", ')
    prompt = random_ids(VOCAB, 12)
    answer = answers_of(qwen, asked("a", input_ids=prompt + begun, num_begun=len(begun)))["a"]
    assert json.loads(bytes(begun).decode() + text(answer.token_ids))["name"] == "Bob"
    refused = answers_of(qwen, asked("a", input_ids=[*prompt, ord("x")], num_begun=1))["a"]
    assert refused.reason == "refused" and refused.finished is not None and "beginning" in str(refused.finished.message)


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"grammar": "start: ???"}, "refused", "cannot be followed"),
        ({"grammar": 'start: %json {"not": {}}'}, "refused", "not"),
        ({"grammar": "x" * (MAX_GRAMMAR_CHARS + 1)}, "error", "grammar"),
        ({"num_begun": 12}, "error", "num_begun"),
        ({"num_begun": -1}, "error", "num_begun"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_it_runs(
    qwen: MemoryCheckpoint, fields: dict[str, Any], reason: str, words: str
) -> None:
    answers = answers_of(qwen, asked("bad", **fields), asked("good"))
    finished = answers["bad"].finished
    assert finished is not None and finished.reason == reason and words in str(finished.message)
    assert answers["good"].reason == "stop"


def test_matching_that_takes_too_much_ends_the_request_and_no_other(
    qwen: MemoryCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = json.dumps({"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1000)}})
    monkeypatch.setattr("qlocal.engine.constraint.GRAMMAR_LIMITS", {"max_items_in_row": 500, "verbose_errors": False})
    answers = answers_of(qwen, asked("wide", grammar=f"start: %json {wide}"), asked("good"))
    finished = answers["wide"].finished
    assert finished is not None and finished.reason == "refused" and "more work" in str(finished.message)
    assert answers["good"].reason == "stop"


def test_a_grammar_without_a_vocabulary_is_refused(qwen: MemoryCheckpoint) -> None:
    answer = run(engine_of(qwen), asked("a"))["a"]
    assert answer.reason == "refused"


def test_few_grammars_are_kept_and_each_answer_has_its_own_place() -> None:
    grammars = Grammars(vocabulary())
    first = grammars.constraint('start: "ab"', [END], NUM_TOKENS, [])
    second = grammars.constraint('start: "ab"', [END], NUM_TOKENS, [])
    assert first.take(ord("a"))
    allowed = second.allowed()
    assert allowed is not None and allowed[ord("a")] and not allowed[ord("b")] and not allowed[END]
    for i in range(3 * MAX_COMPILED):
        grammars.constraint(f'start: "{i}"', [END], NUM_TOKENS, [])
    assert len(grammars._compiled) == MAX_COMPILED
    with pytest.raises(GrammarError):
        grammars.constraint('start: "b"', [END], NUM_TOKENS, [ord("a")])
