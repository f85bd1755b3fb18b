"""The helper process: its life, its limits, and what of it reaches the parent."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from qlocal.errors import EngineError, TemplateError, TokenizerError
from qlocal.guard import client, process
from qlocal.guard.client import Guard
from tests import tiny


def tiny_json() -> bytes:
    return tiny.tiny_tokenizer().to_str().encode()


def test_a_killed_helper_is_started_again_and_loads_its_vocabulary_by_itself() -> None:
    with Guard() as guard:
        loaded = guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
        ids = guard.encode(loaded.key, "hello dog")
        first = guard.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert guard.encode(loaded.key, "hello dog") == ids
        assert guard.pid not in (None, first)


def test_a_bomb_does_not_make_the_helper_forget_vocabularies() -> None:
    with Guard() as guard:
        loaded = guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
        with pytest.raises(TemplateError):
            guard.render("{{ 'x'.zfill(1500000000) }}", {})
        assert guard.encode(loaded.key, "dog") == guard.encode(loaded.key, "dog")


def test_threads_share_one_helper(guard: Guard) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda k: guard.render("{{ k }}", {"k": k}), range(200)))
    assert texts == [str(k) for k in range(200)]


def test_a_warm_render_takes_less_than_a_millisecond(guard: Guard) -> None:
    variables = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True}
    guard.render(tiny.CHAT_TEMPLATE, variables)
    times = []
    for _ in range(100):
        started = time.perf_counter()
        guard.render(tiny.CHAT_TEMPLATE, variables)
        times.append(time.perf_counter() - started)
    assert sorted(times)[50] < 1e-3


def test_closing_ends_the_process_and_the_next_job_starts_a_new_one() -> None:
    guard = Guard()
    assert guard.pid is None
    assert guard.render("a", {}) == "a"
    pid = guard.pid
    assert pid is not None
    guard.close()
    assert guard.pid is None and not Path(f"/proc/{pid}").exists()
    assert guard.render("b", {}) == "b"
    guard.close()


def test_the_helper_runs_without_torch_and_without_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Guard() as guard:
        guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
        guard.render("a", {})
        assert b"secret" not in Path(f"/proc/{guard.pid}/environ").read_bytes()
        assert "torch" not in Path(f"/proc/{guard.pid}/maps").read_text()


def test_the_helper_lives_under_its_limits(guard: Guard) -> None:
    guard.render("a", {})
    limits = Path(f"/proc/{guard.pid}/limits").read_text()
    rows = {line[:25].strip(): line[25:].split() for line in limits.splitlines()}
    assert int(rows["Max address space"][1]) <= 512 << 20
    assert rows["Max file size"][:2] == ["0", "0"]
    assert int(rows["Max open files"][1]) <= 16
    assert int(rows["Max cpu time"][0]) < 60


@pytest.mark.slow
def test_many_short_jobs_do_not_use_up_the_cpu_limit() -> None:
    busy = "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}ok"
    with Guard() as guard:
        assert guard.render(busy, {}) == "ok"
        pid = guard.pid
        while psutil.Process(pid).cpu_times().user < 4.5:
            assert guard.render(busy, {}) == "ok"
        assert guard.pid == pid


def test_a_result_that_is_too_large_is_refused_and_the_helper_goes_on(guard: Guard) -> None:
    guard.render("a", {})
    pid = guard.pid
    with pytest.raises(TemplateError, match="limit"):
        guard.render("{{ 'a' * 16000000 }}{{ 'a' * 16000000 }}", {})
    assert guard.render("a", {}) == "a" and guard.pid == pid


def test_text_with_lone_surrogates_and_nul_passes(guard: Guard) -> None:
    loaded = guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
    assert guard.render("{{ x }}", {"x": "a\ud800\x00"}) == "a\ud800\x00"
    assert guard.encode(loaded.key, "a\x00b")
    pid = guard.pid
    with pytest.raises(TokenizerError, match="surrogate"):
        guard.encode(loaded.key, "a\ud800b")
    assert guard.encode(loaded.key, "ab") and guard.pid == pid


def test_a_text_over_the_limit_is_refused_before_it_is_sent(guard: Guard) -> None:
    loaded = guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
    with pytest.raises(TokenizerError, match="limit"):
        guard.encode(loaded.key, "a" * (9 << 20))


def test_a_helper_that_dies_of_a_job_is_not_given_it_again() -> None:
    with Guard() as guard:
        loaded = guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
        long = "".join(map(chr, range(0x4E00, 0x9000))) * 100  # without a line to cut at: beyond the memory limit
        with pytest.raises(TokenizerError, match="memory"):
            guard.encode(loaded.key, long[: (8 << 20) // 3])
        assert guard.encode(loaded.key, "dog")


def test_values_that_are_no_json_are_refused(guard: Guard) -> None:
    with pytest.raises(TemplateError, match="no JSON"):
        guard.render("{{ x }}", {"x": object()})


def nested_list(depth: int) -> list[object]:
    nested: list[object] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def test_deeply_nested_messages_render_or_are_refused(guard: Guard) -> None:
    template = "{{ messages[0].content }}"
    assert guard.render(template, {"messages": [{"content": nested_list(400)}]}) == "[" * 401 + "]" * 401
    with pytest.raises(TemplateError):
        guard.render(template, {"messages": [{"content": nested_list(5000)}]})
    assert guard.render("a", {}) == "a"


def test_the_same_vocabulary_is_loaded_once_and_forgotten_with_its_last_user() -> None:
    with Guard() as guard:
        first = guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
        assert guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()}) is first
        assert len(guard._vocabularies) == 1
        del first
        assert not guard._vocabularies


def test_a_helper_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(EngineError, match="cannot be started"):
        Guard().render("a", {})


def test_a_helper_that_ends_at_once_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_environment", lambda: {"PYTHONHOME": "/nonexistent"})
    with pytest.raises(EngineError, match="did not start"):
        Guard().render("a", {})


@pytest.mark.parametrize("job", ["render", "encode"])
def test_a_helper_that_hangs_is_given_up_by_the_clock_and_replaced(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it takes no processor time, so that only waiting ends it."""
    with Guard() as guard:
        loaded = guard.load_vocabulary("tokenizer_json", {"bytes": tiny_json()})
        ids, stopped = guard.encode(loaded.key, "hello dog"), guard.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        with monkeypatch.context() as patch, pytest.raises((TemplateError, TokenizerError), match="within 1 s"):
            patch.setattr(client, "WAIT_PER_CPU", 0.5)
            guard.render("a", {}) if job == "render" else guard.encode(loaded.key, "dog")
        assert not psutil.pid_exists(stopped), "nothing is left of it"
        assert guard.render("{{ a }}", {"a": "b"}) == "b"
        assert guard.encode(loaded.key, "hello dog") == ids, "the new one knows the vocabulary"
