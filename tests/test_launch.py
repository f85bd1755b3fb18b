"""The real server and the real engine on a tiny checkpoint, found, started and stopped as the chat does it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from qlocal import launch
from qlocal.clean import clean
from qlocal.commands.waiting import wait_until_ready
from qlocal.config import EngineOptions, load_settings
from qlocal.errors import EngineError, RequestError, UsageError
from qlocal.kernels import native
from qlocal.launch import Address
from qlocal.schema import EngineState, Status
from tests import tiny

OPTIONS = EngineOptions(max_context=256, threads=1)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder with two tiny models, and so a server of its own; stopped at the end."""
    folder = tmp_path_factory.mktemp("home")
    tiny.write_checkpoint(folder / "first")
    tiny.write_checkpoint(folder / "second", "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLOCAL_HOME", str(folder))
        patch.setenv("QLOCAL_CONFIG", str(folder / "config"))
        yield folder
        launch.stop()


@pytest.fixture(scope="module")
def address(home: Path) -> Address:
    """The server with `first` loaded."""
    found = launch.ensure_server("first", OPTIONS)
    wait_until_ready(found)
    return found


def answer(address: Address, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "The quick brown"}], "max_tokens": 8, "seed": 3, **fields}
    with launch.connect(address, read_timeout_s=None) as client:
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_second_start_finds_the_server_that_runs(address: Address) -> None:
    first = launch.fetch_status(address)
    assert launch.ensure_server("first", OPTIONS) == address
    second = launch.fetch_status(address)
    assert first is not None and second is not None
    assert (first.pid, first.state, first.model) == (second.pid, EngineState.READY, "first")


def test_same_seed_gives_the_same_answer_streamed_or_whole_alone_or_in_company(address: Address) -> None:
    whole = answer(address)
    company = answer(address, n=3)
    assert whole["choices"][0]["message"] == company["choices"][0]["message"]
    with launch.connect(address) as client:
        body = {
            "messages": [{"role": "user", "content": "The quick brown"}],
            "max_tokens": 8,
            "seed": 3,
            "stream": True,
        }
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            chunks = [chunk for chunk in launch.events_of(response) if chunk is not None]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert whole["usage"]["completion_tokens"] <= 8 and whole["choices"][0]["finish_reason"] in ("stop", "length")


def test_second_turn_computes_only_its_new_tokens(address: Address) -> None:
    messages = [{"role": "user", "content": "The lazy dog jumps over the quick brown fox. " * 2}]
    first = answer(address, messages=messages)
    again = answer(address, messages=messages)
    assert again["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]
    assert again["usage"]["qlocal"]["cached_tokens"] > 0


def test_logprobs_of_a_greedy_answer_are_those_of_the_best_token(address: Address) -> None:
    choice = answer(address, temperature=0, logprobs=True, top_logprobs=2)["choices"][0]
    for token in choice["logprobs"]["content"]:
        best, second = token["top_logprobs"]
        assert token["logprob"] == best["logprob"] >= second["logprob"] and token["bytes"] == best["bytes"]


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(address: Address) -> None:
    with launch.connect(address) as client:
        response = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "dog " * 500}]})
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded" and "256" in error["message"]


def test_echo_with_logprobs_scores_the_prompt(address: Address) -> None:
    with launch.connect(address) as client:
        body = {"prompt": "The dog", "echo": True, "max_tokens": 0, "logprobs": 1}
        choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == "The dog"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(value < 0 for value in choice["logprobs"]["token_logprobs"][1:])


def test_health_is_a_token_of_the_real_engine(address: Address) -> None:
    with launch.connect(address) as client:
        answer = client.get("/health").json()
        assert (answer["status"], answer["model"]) == ("ok", "first")
        assert answer["engine"]["free_blocks"] == answer["engine"]["total_blocks"] > 0


def test_async_client_reaches_the_server(address: Address) -> None:
    async def models() -> Any:
        async with launch.connect_async(address) as client:
            return (await client.get("/v1/models")).json()

    assert asyncio.run(models())["data"][0]["id"] == "first"


def test_run_prints_the_answer_and_json(address: Address, home: Path) -> None:
    command = [sys.executable, "-m", "qlocal.cli", "run", "first", "--max-tokens", "4", "--temperature", "0"]
    plain = subprocess.run([*command, "The dog"], capture_output=True, text=True, check=True)
    piped = subprocess.run([*command, "-", "--json"], input="The dog", capture_output=True, text=True, check=True)
    text = clean(json.loads(piped.stdout)["choices"][0]["message"]["content"])
    assert plain.stdout == text + ("" if text.endswith("\n") else "\n")


def test_run_whose_reader_leaves_ends_quietly(address: Address, home: Path) -> None:
    script = f"{sys.executable} -m qlocal.cli run first --max-tokens 60 'The dog' | head -c 1"
    found = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], capture_output=True)
    assert found.stderr == b"" and found.returncode in (0, 141)


def test_unknown_model_is_refused_before_anything_starts(home: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'second'"):
        launch.ensure_server("secnd", OPTIONS)


def test_asking_for_another_model_changes_it(address: Address, home: Path) -> None:
    launch.ensure_server("second", OPTIONS)
    assert wait_until_ready(address).model == "second"
    launch.ensure_server("first", OPTIONS)
    assert wait_until_ready(address).model == "first"


@pytest.mark.skipif(isinstance(native.load(), native.Absent), reason="needs the native kernels")
def test_asking_for_another_head_loads_the_model_again_and_no_wish_keeps_it(address: Address, home: Path) -> None:
    for head, held in (("q8_0", "q8_0"), (None, "q8_0"), ("stored", None)):
        launch.ensure_server("first", replace(OPTIONS, head=head))
        status = wait_until_ready(address)
        assert (status.held_head and status.held_head.type) == held
        assert status.plan is not None and status.plan["head"] == (held or "stored")


def test_asking_for_other_cache_types_loads_the_model_again_and_no_wish_keeps_them(
    address: Address, home: Path
) -> None:
    for kv, held in (("q8,q4", ("q8", "q4")), (None, ("q8", "q4")), ("auto", ("q8", "q4")), ("f16", ("f16", "f16"))):
        launch.ensure_server("first", replace(OPTIONS, kv=kv))
        plan = wait_until_ready(address).plan
        assert plan is not None and (plan["key_type"], plan["value_type"]) == held


def test_a_draft_model_guesses_the_same_answer_and_is_kept_without_a_wish(address: Address, home: Path) -> None:
    expected = answer(address, temperature=0, max_tokens=24)
    draft = tiny.write_checkpoint(home / "draft", overrides={"num_hidden_layers": 1})
    for wish, held in (("draft", str(draft)), (None, str(draft)), ("none", "none"), ("context", "context")):
        launch.ensure_server("first", replace(OPTIONS, draft=wish))
        plan = wait_until_ready(address).plan
        assert plan is not None and plan["guesses"] == held
        assert answer(address, temperature=0, max_tokens=24)["choices"] == expected["choices"]


def test_a_draft_model_of_other_tokens_is_refused_in_a_sentence(address: Address, home: Path) -> None:
    stranger = tiny.write_checkpoint(home / "stranger")
    text = (stranger / "tokenizer.json").read_text().replace("<|im_end|>", "<|in_end|>")
    (stranger / "tokenizer.json").write_text(text)
    launch.ensure_server("first", replace(OPTIONS, draft="stranger"))
    with pytest.raises(EngineError, match="stranger cannot guess for first: token"):
        wait_until_ready(address)
    with pytest.raises(UsageError, match="nobody"):
        launch.ensure_server("first", replace(OPTIONS, draft="nobody"))
    launch.ensure_server("first", replace(OPTIONS, draft="context"))
    assert wait_until_ready(address).state is EngineState.READY


def test_a_file_is_read_before_the_question_and_cut_in_the_middle_when_asked(
    address: Address, home: Path, tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("The dog is quick. " * 200)
    command = [sys.executable, "-m", "qlocal.cli", "run", "first", "Why?", "--file", str(book), "--max-tokens", "4"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "maximum context length is 256" in refused.stderr and "truncate the middle" in refused.stderr
    cut = subprocess.run([*command, "--truncate", "middle", "--stats"], capture_output=True, text=True, check=True)
    assert "tokens in the middle of the prompt were left out" in cut.stderr
    (stats,) = [line for line in cut.stderr.splitlines() if line.startswith("prompt ")]
    assert 200 < int(stats.split()[1]) <= 252
    missing = subprocess.run([*command, "--file", str(tmp_path / "no.txt")], capture_output=True, text=True)
    assert missing.returncode == 2 and "there is no file" in missing.stderr


def test_a_long_prompt_tells_how_far_it_is_read_and_other_clients_see_nothing_of_it(
    address: Address, home: Path
) -> None:
    body = {"messages": [{"role": "user", "content": "Quick dogs. " * 20}], "max_tokens": 2, "stream": True}
    launch.stop()
    launch.ensure_server("first", replace(OPTIONS, prefill_chunk=32))
    wait_until_ready(address)
    comments: list[dict[str, Any]] = []
    with launch.connect(address) as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert all(chunk is None or "choices" in chunk for chunk in launch.events_of(response, comments.append))
    done = [said["done_tokens"] for said in comments]
    assert len(done) >= 3 and done == sorted(done) and done[0] == 32
    assert all(said["prompt_tokens"] > done[-1] and said["left_s"] >= 0 for said in comments)
    launch.stop()
    launch.ensure_server("first", OPTIONS)
    wait_until_ready(address)


def kill_server() -> None:
    """Kill the server that this process has started last, and its engine, which would go on writing."""
    server = launch._started[-1]
    everyone = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
    for process in everyone:
        process.kill()
    server.wait()
    psutil.wait_procs(everyone)


def test_a_long_conversation_goes_on_after_the_server_was_stopped_or_killed(address: Address, home: Path) -> None:
    """Stopped: everything is written before it ends. Killed while it writes: what was whole before is there."""
    tiny.write_checkpoint(home / "wide", overrides={"max_position_embeddings": 2048})
    options = replace(OPTIONS, max_context=2048)
    messages = [{"role": "user", "content": "The lazy dog jumps over the quick brown fox. " * 40}]

    def asked(**fields: Any) -> Any:
        launch.ensure_server("wide", options)
        wait_until_ready(address)
        return answer(address, messages=messages, temperature=0, **fields)

    first = asked()
    assert first["usage"]["prompt_tokens"] > 600 and first["usage"]["qlocal"]["cached_tokens"] == 0
    launch.stop()
    again = asked()
    own = again["usage"]["qlocal"]
    assert own["cached_tokens"] == own["restored_tokens"] == again["usage"]["prompt_tokens"] - 1
    assert again["choices"] == first["choices"]
    messages.append({"role": "assistant", "content": first["choices"][0]["message"]["content"]})
    messages.append({"role": "user", "content": "Why? " * 30})
    asked()
    time.sleep(3.2)  # about when writing begins
    kill_server()
    killed = asked()["usage"]["qlocal"]
    assert killed["restored_tokens"] == killed["cached_tokens"] >= 512
    with launch.connect(address) as client:
        kept = client.get("/qlocal/sessions").json()
        assert kept["files"] >= 3 and kept["bytes"] > 0 and kept["folder"].startswith(str(home))
        assert client.delete("/qlocal/sessions").json()["files"] == 0
    launch.stop()
    launch.ensure_server("first", OPTIONS)
    wait_until_ready(address)


def test_a_book_is_read_once_kept_under_a_name_and_brought_back_after_a_kill(home: Path) -> None:
    tiny.write_checkpoint(home / "wide", overrides={"max_position_embeddings": 2048})
    book = home / "book.txt"
    book.write_text("The lazy dog jumps over the quick brown fox. " * 40)
    load = ["--context", "2048", "--threads", "1"]
    asked = ["run", "wide", "Why?", "--file", str(book), "--max-tokens", "2", "--stats", *load]
    saved = qlocal(*asked, "--save", "book")
    assert saved.returncode == 0 and "tokens are kept as 'book'" in saved.stderr, saved.stderr
    kill_server()
    listed = qlocal("sessions")
    assert listed.stdout.startswith(f"in {home}") and " book " in listed.stdout and listed.stdout.endswith("wide\n")
    nobody = qlocal("sessions", "restore", "book")
    assert nobody.returncode == 2 and "no server is running" in nobody.stderr
    assert qlocal("run", "wide", "a", "--max-tokens", "1", *load).returncode == 0
    restored = qlocal("sessions", "restore", "book", "--json")
    found = json.loads(restored.stdout)
    assert found["restored_tokens"] == found["cached_tokens"] == found["tokens"] - 1 == 1023
    assert "(1024 not computed again" in qlocal(*asked).stderr
    other = qlocal("run", "wide", "a", "--max-tokens", "1", "--kv", "q8", *load)
    assert other.returncode == 0
    refused = qlocal("sessions", "restore", "book")
    assert refused.returncode == 2
    assert "book.session was made with keys and values 'f16,f16', expected 'q8,q8'" in refused.stderr
    assert qlocal("sessions", "rm", "book").returncode == 0
    again = qlocal("sessions", "rm", "book")
    assert again.returncode == 2 and "there is no session 'book'. `qlocal sessions` lists them." in again.stderr
    assert qlocal("sessions", "clear").stdout == f"in {load_settings().sessions}: 0 files, 0 B\n"
    launch.stop()
    launch.ensure_server("first", OPTIONS)
    wait_until_ready(launch.own_address())


def qlocal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "qlocal.cli", *arguments], capture_output=True, text=True, timeout=120)


def test_a_server_that_has_to_change_says_what_it_does_and_one_that_has_not_says_nothing(
    address: Address, home: Path
) -> None:
    wishes = (
        ({"kv": "q8"}, "loads first again, with keys and values in q8 instead of f16"),
        ({}, None),
        ({"draft": "none"}, "loads first again, with no guesses"),
        ({"draft": "none"}, None),
        ({"max_context": 300}, "loads first again, with a context of 300 instead of 256"),
        ({"kv": "q8,q4"}, "loads first again, with keys and values in q8,q4 instead of q8"),
        ({"kv": "f16"}, "loads first again, with keys and values in f16 instead of q8,q4"),
    )
    for wish, expected in wishes:
        said: list[str] = []
        launch.ensure_server("first", replace(OPTIONS, **wish), said.append)
        wait_until_ready(address)
        assert said == ([] if expected is None else [f"the server that runs {expected}"])


def test_the_plan_is_known_while_loading_and_what_is_used_afterwards(address: Address, home: Path) -> None:
    status = launch.request_load(address, str(home / "first"), OPTIONS)
    seen = [status.memory]
    with launch.connect(address) as client, client.stream("GET", "/qlocal/events") as response:
        for values in launch.events_of(response):
            assert values is not None
            status = Status.from_json(values)
            seen.append(status.memory)
            if status.state is EngineState.READY:
                break
    assert seen[0] is None and "Context 256 in f16: cpu " in str(seen[-1]) and str(seen[-1]).endswith(" in use")
    assert any(said and "in use" not in said for said in seen), "the plan comes before the model"


def test_checkpoint_that_cannot_be_loaded_is_explained(address: Address, home: Path) -> None:
    broken = tiny.write_checkpoint(home / "broken")
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    launch.ensure_server("broken", OPTIONS)
    with pytest.raises(EngineError, match=r"model\.safetensors"):
        wait_until_ready(address)
    launch.ensure_server("first", OPTIONS)
    assert wait_until_ready(address).state is EngineState.READY


def test_server_on_tcp_serves_the_openai_client_with_its_token(home: Path) -> None:
    command = [sys.executable, "-m", "qlocal.cli", "serve", "first", "--port", "0", "--context", "256"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url, _, token_file = line.strip().removeprefix("listening on ").partition(", token in ")
        token = Path(token_file).read_text().strip()
        address = Address(url=url.removesuffix("/v1"), token=token)
        wait_until_ready(address)
        with OpenAI(base_url=url, api_key=token, max_retries=0) as client:
            question: Any = [{"role": "user", "content": "The dog"}]
            whole = client.chat.completions.create(model="first", messages=question, max_tokens=5, temperature=0)
            parts = client.chat.completions.create(
                model="first", messages=question, max_tokens=5, temperature=0, stream=True
            )
            text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == whole.choices[0].message.content
        assert oct(Path(token_file).stat().st_mode & 0o777) == "0o600"
        process.terminate()
        assert process.wait(20) == 0


def test_stop_ends_the_server_and_says_when_there_is_none(address: Address, home: Path) -> None:
    assert launch.stop() is True
    assert launch.stop() is False
    assert not (load_settings().runtime / "server.sock").exists()


def test_server_that_cannot_start_says_why(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setenv("QLOCAL_RUNTIME", str(tmp_path))
    with pytest.raises(UsageError, match="others can enter the socket's folder"):
        launch.ensure_server("first", OPTIONS)


def test_runtime_folder_of_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLOCAL_RUNTIME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(UsageError, match="another user"):
        launch.own_address()


def test_long_runtime_folder_gets_a_short_stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLOCAL_RUNTIME", str(tmp_path / ("x" * 150)))
    socket = launch.own_address().socket
    assert socket is not None and len(os.fsencode(socket)) < 100 and socket == launch.own_address().socket


def test_error_of_a_server_keeps_message_and_code() -> None:
    import httpx

    error = launch.error_of(httpx.Response(400, json={"error": {"message": "m", "param": "p", "code": "c"}}))
    assert isinstance(error, RequestError) and (error.message, error.param, error.code) == ("m", "p", "c")
    assert "502" in str(launch.error_of(httpx.Response(502, text="<html>")))
