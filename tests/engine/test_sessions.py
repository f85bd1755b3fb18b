"""Conversations outlive the engine: what was computed is read from disk, equal to what it was, and never another's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from qlocal.cache.block_file import read_block, read_header, write_block
from qlocal.cache.disk_tier import MIN_TOKENS
from qlocal.engine import keeping
from qlocal.engine.engine import Engine
from qlocal.engine.loading import load_engine
from qlocal.protocol import FindSession, Load, Sampling, SaveSession, Session
from tests import tiny
from tests.engine.running import Answer, request, run
from tests.memory_checkpoint import random_ids

CONTEXT = 2048
WIDE = {"max_position_embeddings": CONTEXT}
SCORED = Sampling(temperature=0.0, top_logprobs=3)
PROMPT = random_ids(300, 700)
BLOCK_BYTES = 2 * 2 * 2 * 256 * 32 * 2 + 4096
"""Of a file: keys and values of two layers and two heads, and the header."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model", overrides=WIDE)


def engine_at(
    model: Path, sessions: Path | None, kv: str | None = None, quota: int = 1 << 30, ranks: int = 1
) -> Engine:
    split = "layer" if ranks == 1 else "tensor"
    load = Load(str(model), ["cpu"] * ranks, max_context=CONTEXT, slots=1, threads=ranks, kv=kv, split=split)
    kept = {} if sessions is None else {"sessions_folder": str(sessions), "sessions_bytes": quota}
    return load_engine(Load(**{**vars(load), **kept}), lambda _: None)


def ask(engine: Engine, prompt: list[int], tokens: int = 6) -> Answer:
    return run(engine, request("a", prompt, tokens, SCORED, num_tokens=300))["a"]


def reused(answer: Answer) -> tuple[int, int]:
    assert answer.started is not None
    return answer.started.cached_tokens, answer.started.restored_tokens


@pytest.mark.parametrize("kv", [None, "q8", "q8,q4"])
def test_a_conversation_goes_on_after_the_engine_was_ended(folder: Path, tmp_path: Path, kv: str | None) -> None:
    before = engine_at(folder, tmp_path, kv)
    first = ask(before, PROMPT)
    assert before.has_unkept
    before.keep_all(within_s=60)
    assert not before.has_unkept
    turn = [*PROMPT, *first.token_ids, *random_ids(300, 9, seed=2)]
    expected = ask(before, turn)
    assert reused(expected) == (705, 0)
    after = ask(engine_at(folder, tmp_path, kv), turn)
    assert reused(after) == (705, 705), "not one token is computed again"
    assert after.token_ids == expected.token_ids
    assert after.logprobs == expected.logprobs, "the next logits are those before"


@pytest.mark.parametrize(("kv", "kv_heads"), [("q8,q4", 2), ("q4", 1)])
def test_a_tensor_split_keeps_whole_heads_which_any_split_takes_up(tmp_path: Path, kv: str, kv_heads: int) -> None:
    """Where there are fewer heads than ranks, both hold the one."""
    heads = {**WIDE, "num_key_value_heads": kv_heads}
    model, sessions = tiny.write_checkpoint(tmp_path / "model", overrides=heads), tmp_path / "sessions"
    before = engine_at(model, sessions, kv, ranks=2)
    first = ask(before, PROMPT)
    before.keep_all(within_s=60)
    assert not before.has_unkept
    turn = [*PROMPT, *first.token_ids, *random_ids(300, 9, seed=2)]
    expected = ask(before, turn)
    before.close()
    assert reused(expected) == (705, 0)
    again = engine_at(model, sessions, kv, ranks=2)
    after = ask(again, turn)
    ask(again, random_ids(300, 1800, seed=3))
    assert reused(ask(again, turn))[1] >= 256, "what has given way comes back"
    again.close()
    assert reused(after) == (705, 705), "not one token is computed again"
    assert after.token_ids == expected.token_ids
    assert after.logprobs == expected.logprobs, "the next logits are those before"
    alone = ask(engine_at(model, sessions, kv), turn)
    assert reused(alone) == (714, 714), "the turn was kept too, when it gave way"
    found = [(one.token_id, one.logprob) for one in alone.logprobs]
    assert found == [(one.token_id, pytest.approx(one.logprob, abs=0.02)) for one in expected.logprobs]


def test_what_was_rounded_by_other_constants_is_not_used(folder: Path, tmp_path: Path) -> None:
    before = engine_at(folder, tmp_path, "q8")
    ask(before, PROMPT)
    before.keep_all(within_s=60)
    assert reused(ask(engine_at(folder, tmp_path, "q8"), PROMPT)) == (699, 699)
    (constants,) = tmp_path.glob("*.constants")
    damaged = bytearray(constants.read_bytes())
    damaged[-1] ^= 1
    constants.write_bytes(damaged)
    assert reused(ask(engine_at(folder, tmp_path, "q8"), PROMPT)) == (699, 699), "measured again, as they were"
    path, made_by = constants, read_header(constants).made_by
    whole = torch.zeros(read_header(constants).payload_bytes // 4)
    read_block(path, [whole.view(torch.uint8)])
    write_block(path, made_by, "", [], [(whole * 1.001).view(torch.uint8)])
    assert reused(ask(engine_at(folder, tmp_path, "q8"), PROMPT)) == (0, 0)


def test_an_edit_and_a_branch_restore_what_stands_before_them(folder: Path, tmp_path: Path) -> None:
    before = engine_at(folder, tmp_path)
    ask(before, PROMPT)
    before.keep_all(within_s=60)
    edited = [*PROMPT[:600], 1, 2, 3]
    assert reused(ask(engine_at(folder, tmp_path), edited)) == (600, 600)
    plain = ask(engine_at(folder, None), edited)
    assert ask(engine_at(folder, tmp_path), edited).token_ids == plain.token_ids


def test_other_weights_other_types_and_other_scaling_take_nothing(folder: Path, tmp_path: Path) -> None:
    before = engine_at(folder, tmp_path)
    ask(before, PROMPT)
    before.keep_all(within_s=60)
    yarn = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024}
    tuned = tiny.write_checkpoint(tmp_path / "tuned" / "model", overrides=WIDE, seed=1)
    stretched = tiny.write_checkpoint(tmp_path / "yarn" / "model", overrides={**WIDE, "rope_scaling": yarn})
    for model, kv in ((tuned, None), (stretched, None), (folder, "q8")):
        found, plain = ask(engine_at(model, tmp_path, kv), PROMPT), ask(engine_at(model, None, kv), PROMPT)
        assert reused(found) == (0, 0)
        assert found.token_ids == plain.token_ids
    assert reused(ask(engine_at(folder, tmp_path), PROMPT)) == (699, 699), "the others have taken nothing away"


def test_what_is_damaged_is_computed_and_told(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = engine_at(folder, tmp_path)
    expected = ask(before, PROMPT)
    before.keep_all(within_s=60)
    for path in tmp_path.glob("*-256.kv"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        after = ask(engine_at(folder, tmp_path), PROMPT)
    assert reused(after) == (0, 0) and after.token_ids == expected.token_ids
    assert "its checksum is" in caplog.text and "are computed again" in caplog.text


def test_short_conversations_are_not_kept_and_the_quota_holds(folder: Path, tmp_path: Path) -> None:
    engine = engine_at(folder, tmp_path / "short")
    ask(engine, random_ids(300, MIN_TOKENS - 30))
    engine.keep_all(within_s=60)
    assert list((tmp_path / "short").iterdir()) == []
    small = engine_at(folder, tmp_path / "small", quota=2 * BLOCK_BYTES)
    ask(small, PROMPT)
    small.keep_all(within_s=60)
    assert not small.has_unkept
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= 2 * BLOCK_BYTES
    assert reused(ask(engine_at(folder, tmp_path / "small"), PROMPT))[1] == 512, "the beginning is worth most"


def save(engine: Engine, name: str, prompt: list[int]) -> Session:
    while True:
        answer = engine.save_session(SaveSession(1, name, "tiny", prompt))
        if answer.error is not None or answer.saved_tokens == answer.total_tokens:
            return answer


def test_a_saved_prompt_outlives_the_quota_and_comes_back_whole(folder: Path, tmp_path: Path) -> None:
    engine = engine_at(folder, tmp_path, quota=5 * BLOCK_BYTES)
    expected = ask(engine, PROMPT)
    assert save(engine, "book", PROMPT) == Session(1, 512, 512), "whole blocks are"
    for seed in range(5, 12):
        ask(engine, random_ids(300, 1400, seed=seed))
        engine.keep_all(within_s=60)
    assert len(list(tmp_path.glob("*.kv"))) == 5
    again = engine_at(folder, tmp_path, quota=5 * BLOCK_BYTES)
    found = again.find_session(FindSession(2, "book"))
    assert (found.nonce, found.token_ids, found.error) == (2, PROMPT[:512], None)
    after = ask(again, PROMPT)
    assert reused(after) == (512, 512)
    assert (after.token_ids, after.logprobs) == (expected.token_ids, expected.logprobs)
    (tmp_path / "book.session").unlink()
    ask(again, random_ids(300, 2000, seed=20))
    again.keep_all(within_s=60)
    assert reused(ask(engine_at(folder, tmp_path, quota=5 * BLOCK_BYTES), PROMPT)) == (0, 0), "nobody keeps it any more"


def test_a_session_of_another_model_or_without_its_blocks_is_refused(folder: Path, tmp_path: Path) -> None:
    engine = engine_at(folder, tmp_path)
    ask(engine, PROMPT)
    save(engine, "book", PROMPT)
    refused = engine_at(folder, tmp_path, "q8").find_session(FindSession(1, "book"))
    assert not refused.token_ids
    assert refused.error == "book.session was made with keys and values 'f16,f16', expected 'q8,q8'"
    for path in tmp_path.glob("*.kv"):
        path.unlink()
    missing = engine_at(folder, tmp_path).find_session(FindSession(1, "book"))
    assert missing.error == f"2 of the 2 blocks of 'book' are missing in {tmp_path}"
    assert engine.find_session(FindSession(1, "other")).error == "there is no session 'other'"
    (tmp_path / "torn.session").write_bytes(b"QLKV")
    assert engine.find_session(FindSession(1, "torn")).error == "torn.session is no stored block"


def test_what_others_have_removed_is_written_again_or_missed(folder: Path, tmp_path: Path) -> None:
    engine = engine_at(folder, tmp_path)
    ask(engine, PROMPT)
    engine.keep_all(within_s=60)
    for path in tmp_path.glob("*.kv"):
        path.unlink()
    assert save(engine, "book", PROMPT).error is None
    assert len(list(tmp_path.glob("*.kv"))) == 2
    again = engine_at(folder, tmp_path)
    for path in tmp_path.glob("*.kv"):
        path.unlink()
    assert again.find_session(FindSession(1, "book")).error == f"2 of the 2 blocks of 'book' are missing in {tmp_path}"


def test_what_cannot_be_saved_says_why(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_at(folder, tmp_path, quota=6 * BLOCK_BYTES)
    short = save(engine, "a", PROMPT[:200])
    assert short.error == "a prompt of 200 tokens is too short to be saved: it has no whole block"
    assert save(engine, "a", PROMPT).error == "'a' cannot be saved: others took the place of its tokens"
    assert save(engine, "../a", PROMPT).error == "'../a' is no name for a session"
    assert save(engine, "a", [999] * 256).error == "'a' has tokens that the model has not"
    assert "conversations may take" in str(save(engine, "a", random_ids(300, 2047)).error)
    ask(engine, PROMPT)
    for name in ("a", "b"):
        assert save(engine, name, PROMPT).error is None
    other = random_ids(300, 1600, seed=9)
    ask(engine, other)
    said = save(engine, "c", other)
    assert said.error == "'c' cannot be saved: the disk, or other saved sessions, leave no room"
    off = engine_at(folder, None)
    assert save(off, "a", PROMPT) == Session(
        1, error="no conversations are kept on disk", hint="Start the server with --sessions SIZE."
    )
    monkeypatch.setattr(keeping, "SAVE_S", 0.0)
    long = engine_at(folder, tmp_path / "steps")
    ask(long, PROMPT)
    assert long.save_session(SaveSession(1, "a", "tiny", PROMPT)) == Session(1, 256, 512), "a block at a time"
    assert not (tmp_path / "steps" / "a.session").exists()
    assert long.save_session(SaveSession(1, "a", "tiny", PROMPT)) == Session(1, 512, 512)


def test_a_folder_that_cannot_be_made_is_told_and_nothing_else_happens(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    engine = engine_at(folder, tmp_path / "file")
    assert ask(engine, PROMPT).reason == "length" and not engine.has_unkept
    assert "conversations are not kept in" in caplog.text
