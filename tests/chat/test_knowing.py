"""What the chat knows: statistics, plan, report and log, as the reader sees them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.widgets import Log, Static

from qlocal.chat import facts, machine
from qlocal.chat.events import Done, TextDelta, Usage
from qlocal.chat.link_state import LinkState, Phase, ShownPlan
from qlocal.chat.machine import Machine
from qlocal.chat.screens.facts import FactsScreen
from qlocal.chat.screens.log import LogScreen
from qlocal.chat.screens.models import ModelScreen
from qlocal.schema import EngineState, LoadProgress, Status, Template
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of

MIB = 1 << 20
PLAN: dict[str, Any] = {
    "max_context": 8192,
    "slots": 2,
    "key_type": "q8",
    "value_type": "q4",
    "split": "layer",
    "head": "stored",
    "guesses": "/m/draft-0.5b",
    "devices": [
        {
            "device": "cuda:0",
            "layers": [0, 1],
            "weight_bytes": 900 * MIB,
            "mapped_bytes": 0,
            "cache_bytes": 80 * MIB,
            "scratch_bytes": 20 * MIB,
        }
    ],
}
STATUS = Status(EngineState.READY, "0", 1, "tiny", "/m/tiny", plan=PLAN, used={"cuda:0": 990 * MIB}, in_flight=3)
USAGE = Usage(1000, 50, 600, 2.0, 5.0, 10.0, 8192, 40, 30, 100)


def ready(**changes: Any) -> LinkState:
    status = replace(STATUS, **changes)
    return LinkState(Phase.READY, "tiny", path=status.path, max_context=8192, status=status)


def rows(chat: Chat) -> str:
    screen = chat.app.screen
    assert isinstance(screen, FactsScreen)
    # Nothing yet where the screen is there and what stands in it is not.
    return "".join(re.sub(r"\n {10,}", " ", str(one.content)) for one in screen.query("#rows").results(Static))


async def opened(chat: Chat, action: str) -> None:
    chat.app.chat.action_do(action)
    await chat.until(lambda: isinstance(chat.app.screen, FactsScreen) and bool(rows(chat)))


def test_statistics_tell_speeds_cache_memory_and_planned_against_actual(tmp_path: Path, monkeypatch: Any) -> None:
    now = Machine(3 << 30, 8 << 30, 1 << 30, {"cuda:0": (2 << 30, 24 << 30)})
    monkeypatch.setattr(machine, "look", lambda devices, pid: now if (list(devices), pid) == (["cuda:0"], 1) else None)

    async def use(chat: Chat) -> None:
        assert "3 of others in the queue" in chat.status
        await chat.say("go")
        await chat.until_shown("text")
        await chat.until_idle()
        await chat.pilot.press("f3")
        await chat.until(lambda: isinstance(chat.app.screen, FactsScreen) and bool(rows(chat)))
        text = rows(chat)
        for part in (
            "400 tokens at 200.0 tok/s (600 more were cached, 100 of them from disk or host memory)",
            "50 tokens at 10.0 tok/s",
            "time to first token",
            "30 of 40 were right (75%)",
            "8,192 tokens for 2 conversations",
            "q8, q4",
            "guesses by draft-0.5b",
            "2 at work, 1 waiting, 2 at once at most",
            "planned 1000 MiB: weights 900 MiB, cache 80 MiB, steps 20 MiB",
            "loading took 990 MiB (99% of the plan)",
            "2.00 GiB of 24.00 GiB in use",
            "3.00 GiB of 8.00 GiB in use",
            "the server and its engine: 1.00 GiB",
        ):
            assert part in text, part
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)

    link = ScriptedLink([[TextDelta("text"), USAGE, Done("stop")]], first_states=[ready()])
    run_chat(tmp_path, link, use, size=(120, 40))


def test_the_details_of_an_answer_tell_what_made_it(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("one.")
        await chat.until_idle()
        seed = chat.link.options[0]["seed"]
        now = replace(first, status=replace(first.status or STATUS, weights="f" * 32))
        chat.link.push(now)
        await chat.until(lambda: chat.app.chat.desk.link_state == now)
        await chat.say("and on")
        await chat.until_shown("two.")
        await chat.until_idle()
        await opened(chat, "statistics")
        for part in ("Last answer", "What made it", "f" * 16, "temperature 0.6, top_k 20", "q8, q4", "/m/tiny"):
            assert part in rows(chat), part
        await chat.pilot.press("escape")
        for _ in range(3):
            await chat.pilot.press("alt+up")
        await opened(chat, "statistics")
        for part in ("Answer at the cursor", "0123456789abcdef", f"seed                 {seed}"):
            assert part in rows(chat), part

    first = ready(weights="0123456789abcdef" * 2, sampling={"temperature": 0.6, "top_k": 20})
    link = ScriptedLink([answer_of("one."), answer_of("two.")], first_states=[first])
    run_chat(tmp_path, link, use, size=(120, 60))


def test_statistics_are_read_anew_while_they_are_shown(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await opened(chat, "statistics")
        assert "None in this conversation yet" in rows(chat)
        progress = LoadProgress("loading", 3, 4, {"cuda:0": [6, 8], "cuda:1": [0, 8]})
        chat.link.push(LinkState(Phase.LOADING, "tiny", status=replace(STATUS, progress=progress)))
        await chat.until(lambda: "6 of 8 layers" in rows(chat) and "0 of 8 layers" in rows(chat))

    run_chat(tmp_path, ScriptedLink([answer_of("x")], first_states=[ready()]), use, size=(120, 40))


def test_a_template_that_nobody_knows_is_told_of(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        chat.link.push(ready(template=Template("a" * 64)))
        await chat.until(lambda: chat.app.chat.desk.link_state.status.template is not None)
        assert "template" not in chat.notice
        chat.link.push(ready(template=Template("ab" * 32, is_new=True)))
        await chat.until(lambda: "SHA-256 abababababab…" in chat.notice)
        assert "qlocal template show" in chat.notice

    run_chat(tmp_path, ScriptedLink([answer_of("x")], first_states=[ready()]), use)


def test_somebody_elses_server_is_said_to_tell_no_more(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await opened(chat, "statistics")
        assert "it tells no more" in rows(chat) and "memory now" in rows(chat)

    run_chat(tmp_path, ScriptedLink([answer_of("x")], is_own=False), use)


def test_this_machine_is_looked_at() -> None:
    import os

    now = machine.look(["cpu", "cuda:0"], os.getpid())
    assert 0 < now.host_used < now.host_total and now.server is not None and now.server > MIB
    assert set(now.cards) == {"cuda:0"}
    assert machine.look([], 2**22 + 12345).server is None


def test_a_plan_is_shown_before_loading_and_enter_loads(tmp_path: Path) -> None:
    shown = ShownPlan(["device  weights", "cpu     93 MiB"], ["context 2,048 tokens"])
    link = ScriptedLink([answer_of("x")], plans={"other-model": shown})

    async def plan_of(chat: Chat, name: str) -> None:
        chat.app.chat.action_do("plan")
        await chat.until(lambda: isinstance(chat.app.screen, ModelScreen))
        await chat.pilot.press(*name, "enter")

    async def use(chat: Chat) -> None:
        await plan_of(chat, "other")
        await chat.until(lambda: isinstance(chat.app.screen, FactsScreen) and "93 MiB" in rows(chat))
        assert "context 2,048 tokens" in rows(chat)
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)
        assert link.selected == []
        await plan_of(chat, "other")
        await chat.until(lambda: isinstance(chat.app.screen, FactsScreen) and "93 MiB" in rows(chat))
        await chat.pilot.press("enter")
        await chat.until(lambda: "other-model · ready" in chat.status)
        await plan_of(chat, "tiny")
        await chat.until(lambda: "needs our own server" in chat.notice)

    run_chat(tmp_path, link, use)


def test_the_report_of_a_folder_and_of_a_gguf_file_is_shown_clean(tmp_path: Path) -> None:
    report = {
        "model": "Tiny\x1b]0;x\x07",
        "format": "awq",
        "method": "AWQ",
        "tensor_bytes": 300 * MIB,
        "bits_per_weight": 4.5,
        "mean_loss": 0.0123,
        "bytes_by_type": {"awq": 290 * MIB},
        "losses": {"layers.0.q": 0.5, "layers.1.q": 0.1, "wrong": "text"},
        "verify": {"passed": True, "kl": {"mean": 0.0125}, "texts": ["ignored"]},
        "notes": ["the head stays"],
    }
    folder, gguf = tmp_path / "awq", tmp_path / "one.gguf"
    folder.mkdir()
    (folder / "quantization_report.json").write_text(json.dumps(report))
    (tmp_path / "one.json").write_text(json.dumps(report))

    async def use(chat: Chat) -> None:
        for path in (folder, gguf):
            chat.link.push(ready(path=str(path)))
            await chat.until(lambda path=path: chat.app.chat.desk.link_state.path == str(path))
            await opened(chat, "report")
            text = rows(chat)
            assert "4.500 bits a weight" in text and "kl mean" in text and "0.0125" in text and "the head stays" in text
            assert text.index("layers.0.q") < text.index("layers.1.q") and "\x1b" not in text and "\\x1b" in text
            await chat.pilot.press("escape")
            await chat.until(lambda: chat.app.screen is chat.app.chat)
        for content in ("[1]", "{", '{"bits_per_weight": "x"}'):
            (tmp_path / "one.json").write_text(content)
            chat.app.chat.desk.notice.clear()
            chat.app.chat.action_do("report")
            await chat.until(lambda: "no quantization report" in chat.notice)

    run_chat(tmp_path / "home", ScriptedLink([answer_of("x")], first_states=[ready()]), use, size=(100, 40))


def test_the_log_is_followed_and_clean(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("old\n" * 10 + "first \x1b[31mline\n")

    async def use(chat: Chat) -> None:
        await chat.pilot.press("f7")
        await chat.until(lambda: isinstance(chat.app.screen, LogScreen))
        log = chat.app.screen.query_one(Log)
        await chat.until(lambda: "first \\x1b[31mline" in "\n".join(log.lines))
        with path.open("a") as file:
            file.write("second\n")
        await chat.until(lambda: "second" in "\n".join(log.lines))
        path.write_text("anew\n")
        await chat.until(lambda: "anew" in "\n".join(log.lines))
        assert "\n".join(log.lines).count("second") == 1
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)

    run_chat(tmp_path, ScriptedLink([answer_of("x")], log=path), use)


def test_without_a_log_or_a_path_that_is_said(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("f7")
        assert "where that server runs" in chat.notice
        chat.app.chat.action_do("report")
        assert "needs our own server" in chat.notice

    run_chat(tmp_path, ScriptedLink([answer_of("x")]), use)


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    from qlocal.chat.screens.log import TAIL_BYTES, _read_from

    path = tmp_path / "server.log"
    path.write_text("".join(f"line {i}\n" for i in range(50_000)))
    text, at = _read_from(path, None)
    assert len(text) <= TAIL_BYTES and text.startswith("line ") and text.endswith("line 49999\n")
    assert _read_from(path, at) == ("", at)
    gone, zero = _read_from(tmp_path / "none", None)
    assert "cannot be read" in gone and zero == 0


def test_numbers_that_are_none_are_left_out() -> None:
    section = facts.answer_section(None)
    assert section.rows == [("", "None in this conversation yet.")]
    assert facts.report_sections({"notes": "x", "losses": [], "verify": 3})[0].rows == []


def test_facts_are_wrapped_once_where_they_scroll(tmp_path: Path) -> None:
    """The bar beside them takes a cell, which lines must not be wrapped for again."""

    async def use(chat: Chat) -> None:
        await chat.pilot.press("f3")
        await chat.until(lambda: isinstance(chat.app.screen, FactsScreen) and bool(rows(chat)))
        shown = chat.app.screen.query_one("#rows", Static)
        lines = str(shown.content).splitlines()
        assert len(lines) > 15 and max(map(len, lines)) <= shown.content_size.width

    run_chat(tmp_path, ScriptedLink([answer_of("x")], first_states=[ready()]), use, size=(60, 15))
