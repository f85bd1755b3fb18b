"""Every screen of the chat as a scene: what lies in the history, and the keys that lead there.

Clock, machine and server are scripted, so that a scene looks the same every time. For snapshots and for pictures.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from textual.widgets import Input, Log, OptionList, SelectionList, Static, TextArea

from qlocal.chat import machine, words
from qlocal.chat.events import AnswerEvent, Done, Failure, TextDelta, TokenCount, ToolCallDelta
from qlocal.chat.features.conversations import Conversations
from qlocal.chat.languages import t
from qlocal.chat.link_state import Choice, LinkState, Phase, ShownPlan, Variant
from qlocal.chat.logprobs import pack
from qlocal.chat.machine import Machine
from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.records import MessageState, Role
from qlocal.chat.widgets.transcript import Transcript
from qlocal.endings import ending
from qlocal.errors import PlanError
from qlocal.schema import EngineState, LoadProgress, Status
from tests.chat.driving import Chat
from tests.chat.scripted import ScriptedLink, answer_of, scored
from tests.chat.talks import Talk

KILLED = ending("the engine", -9)
STAGE = "loading 2.62 GiB on cuda:0 and 3.62 GiB on cuda:1 for 32,768 tokens, layer split"
MODEL, OTHER, THIRD = "qwen2.5-7b-awq", "qwen2.5-7b-q4_k_m", "llama-3.1-8b-q4_k_m"
NOON = time.mktime((2026, 3, 14, 12, 0, 0, 0, 0, -1))
DAY_S = 86_400
GIB = 1 << 30
PLAN = {
    "max_context": 32_768, "slots": 2, "key_type": "q8", "value_type": "q8", "split": "layer", "head": "stored",
    "guesses": "n-gram",
    "devices": [
        {"device": "cuda:0", "layers": [0, 14], "weight_bytes": 2 * GIB, "mapped_bytes": 0, "cache_bytes": GIB // 2,
         "scratch_bytes": GIB // 8},
        {"device": "cuda:1", "layers": [14, 28], "weight_bytes": 3 * GIB, "mapped_bytes": 0, "cache_bytes": GIB // 2,
         "scratch_bytes": GIB // 8},
    ],
}  # fmt: skip
STATUS = Status(
    EngineState.READY,
    "1.0",
    4711,
    MODEL,
    "model",
    plan=PLAN,
    used={"cuda:0": int(2.6 * GIB), "cuda:1": int(3.7 * GIB)},
)
READY = LinkState(Phase.READY, MODEL, path="model", max_context=32_768, status=STATUS)
META = {
    "prompt_tokens": 412, "completion_tokens": 96, "cached_tokens": 305, "tokens_per_s": 71.3, "prefill_s": 0.21,
    "first_s": 0.24, "drafted_tokens": 40, "accepted_tokens": 31,
}  # fmt: skip
REPORT = {
    "model": "Qwen2.5-7B-Instruct", "format": "awq", "method": "awq", "tensor_bytes": 5_571_000_000,
    "bits_per_weight": 4.51, "mean_loss": 0.00213, "bytes_by_type": {"awq": 3_900_000_000, "BF16": 1_671_000_000},
    "verify": {"passed": True, "kl": {"mean": 0.0183, "median": 0.0041}, "top1": 0.956, "perplexity_ratio": 1.012},
    "losses": {"layers.27.mlp.down_proj": 0.0214, "layers.3.mlp.down_proj": 0.0107, "layers.0.self_attn.v_proj": 0.009},
    "notes": ["The output head stays in 16 bits."],
}  # fmt: skip
TABLE = [
    "device    weights    cache   steps   total    free",
    "cuda:0   2.00 GiB  512 MiB  128 MiB  2.62 GiB  21.2 GiB",
    "cuda:1   3.00 GiB  512 MiB  128 MiB  3.62 GiB  20.1 GiB",
]


class Clock(SimpleNamespace):
    """The module `time` on a day in March at noon: every look at it is a second later."""

    def __init__(self) -> None:
        super().__init__(localtime=time.localtime, strftime=time.strftime)
        self.now_s = NOON

    def time(self) -> float:
        self.now_s += 1
        return self.now_s


@contextmanager
def scripted_world() -> Iterator[Clock]:
    """Put the clock and the machine of the scenes in the place of the real ones."""
    clock = Clock()
    now = Machine(19 * GIB, 64 * GIB, 3 * GIB, {"cuda:0": (3 * GIB, 24 * GIB), "cuda:1": (4 * GIB, 24 * GIB)})
    with ExitStack() as patches:
        for module in ("store.history", "features.finding"):
            patches.enter_context(patch(f"qlocal.chat.{module}.time", clock))
        patches.enter_context(patch.dict(os.environ, {"QLOCAL_CONFIG": "config"}))
        patches.enter_context(patch.object(machine, "look", lambda _devices, _pid: now))
        patches.enter_context(patch("qlocal.chat.features.turns.SPEED_S", 3600.0))
        patches.enter_context(patch("qlocal.chat.features.drafting.COUNT_DELAY_S", 0.01))
        yield clock


def write_history(path: Path, talk: Talk, clock: Clock) -> None:
    """Write the conversations of a talk: others first, then the one that the scenes open, by its id 1 + len(others)."""
    connection, _ = open_database(path)
    history = History(connection)
    for days, title in enumerate(reversed(talk.others)):
        clock.now_s = NOON - (len(talk.others) - days) * DAY_S
        other = history.new_conversation(title, OTHER, None)
        history.add_message(other, None, Role.USER, title)
        if days == 0:
            history.pin(other, is_pinned=True)
            history.tag(other, talk.tags[:1])
    clock.now_s = NOON
    conversation = history.new_conversation(talk.turns[0][0], MODEL, talk.system)
    parent: int | None = None
    for question, answers in talk.turns:
        parent = asked = history.add_message(conversation, parent, Role.USER, question)
        for number, text in enumerate(answers):
            parent = history.begin_answer(conversation, asked, MODEL if number else OTHER)
            history.finish_answer(parent, text, MessageState.COMPLETE, META)
    assert parent is not None, "a talk has turns"
    history.save_logprobs(parent, pack(scored(*talk.scored)))
    history.tag(conversation, talk.tags)
    connection.close()


class SceneLink(ScriptedLink):
    """Counts four characters as a token. fitting_context: of the loaded model, where not all of it fits."""

    fitting_context: int | None = None

    async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
        if self.fitting_context is not None and kv is None and (max_context or 1 << 20) > self.fitting_context:
            raise PlanError("it does not fit")
        return self.plans.get(model) or ShownPlan(TABLE, [])

    async def count(
        self, messages: list[dict[str, str]], tools: list[dict[str, Any]] | None = None
    ) -> TokenCount | None:
        if self.per_message is not None:
            return await super().count(messages, tools)
        sizes = [8 + len(message["content"]) // 4 for message in messages]
        return TokenCount(sum(sizes), self.max_context, sum(sizes[:-1]))


def link_for(talk: Talk, folder: Path) -> ScriptedLink:
    """The server of the scenes; its files lie in the working folder, so that no path of this machine is shown."""
    (folder / "model").mkdir()
    (folder / "model" / "quantization_report.json").write_text(json.dumps(REPORT))
    (folder / "server.log").write_text(
        "".join(f"12:00:{i:02d} INFO  layer {i} of 28 is loaded: {100 * i} MiB\n" for i in range(28))
        + "12:00:31 WARNING  cuda:1 has no peer access to cuda:0: copies go through the host\n"
    )
    before, after = scored(*talk.scored), scored(*(_moved(row) for row in talk.scored))
    return SceneLink(
        [answer_of(text) for text in talk.answers],
        first_states=[READY],
        models=[
            Choice(MODEL, "AWQ, 5.2 GiB"),
            Choice(OTHER, "GGUF Q4_K_M, 4.4 GiB"),
            Choice(THIRD, "GGUF Q4_K_M, 4.6 GiB"),
            Choice("qwen2-72b-awq", "38.4 GiB, qlocal pull qwen2-72b-awq", is_here=False),
        ],
        max_context=32_768,
        scores=(before, after),
        distances=([0.01, 0.34, 0.02, 0.05, 0.01, 0.21, 0.06, 0.01, 0.02][: len(before)],) * 2,
        at_hand=[
            Variant(MODEL, "model", "AWQ", 5 * GIB, True, True),
            Variant("qwen2.5-7b-bf16", "bf16", "BF16", 15 * GIB, False, True),
        ],
        log=Path("server.log"),
        plans={OTHER: ShownPlan(TABLE, ["Context 32,768 tokens for 2 conversations.", "Keys and values: q8, q8."])},
    )


def _moved(row: dict[str, float]) -> dict[str, float]:
    """The same candidates as another variant sees them: the first a little less likely, the second more."""
    first, second, *rest = row.items()
    return {first[0]: first[1] * 0.8, second[0]: second[1] + first[1] * 0.2, **dict(rest)}


@dataclass(frozen=True)
class Scene:
    """How a screen is reached. is_said: whether what is said is a part of it, so that every language is looked at."""

    reach: Callable[[Chat, Talk], Awaitable[None]]
    is_said: bool


SCENES: dict[str, Scene] = {}


def scene(
    *, is_said: bool = False
) -> Callable[[Callable[[Chat, Talk], Awaitable[None]]], Callable[[Chat, Talk], Awaitable[None]]]:
    def note(reach: Callable[[Chat, Talk], Awaitable[None]]) -> Callable[[Chat, Talk], Awaitable[None]]:
        SCENES[reach.__name__] = Scene(reach, is_said)
        return reach

    return note


async def show_conversation(chat: Chat, talk: Talk) -> None:
    """Open the conversation of the talk at its end."""
    await chat.app.chat.desk.feature(Conversations).open(1 + len(talk.others))
    await chat.until_shown(talk.turns[-1][0])


async def shown(chat: Chat, name: str) -> None:
    """Wait for a screen by the name of its class, with its widgets drawn."""
    await chat.until(lambda: type(chat.app.screen).__name__ == name and chat.app.screen.is_running)
    await chat.pilot.pause()


async def do(chat: Chat, action: str, screen: str) -> None:
    chat.app.chat.action_do(action)
    await shown(chat, screen)


@scene()
async def empty(chat: Chat, talk: Talk) -> None:
    await chat.until(lambda: MODEL in chat.status)


@scene(is_said=True)
async def conversation(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)


@scene(is_said=True)
async def streaming(chat: Chat, talk: Talk) -> None:
    """Half an answer; what is sent meanwhile waits."""
    half: list[AnswerEvent | asyncio.Event] = [*answer_of(talk.turns[0][1][-1][:210])[:-2], asyncio.Event()]
    chat.link.answers = [half]
    await chat.say(talk.turns[0][0])
    transcript = chat.app.chat.query_one(Transcript)
    await chat.until(lambda: bool(transcript.entries) and len(transcript.entries[-1].text) == 210)
    await chat.say(talk.turns[1][0])


@scene()
async def thought_unfolded(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)
    await chat.pilot.press("ctrl+t")


@scene(is_said=True)
async def writing(chat: Chat, talk: Talk) -> None:
    """A message with a chip, and its price."""
    await show_conversation(chat, talk)
    chat.prompt.insert(talk.draft + " ")
    chat.prompt.attach(talk.turns[0][1][-1], "notes.md")
    await chat.until(lambda: "tokens]" in chat.prompt.text)


@scene(is_said=True)
async def sidebar(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)
    await chat.pilot.press("ctrl+b")
    await chat.until(lambda: chat.app.screen.query_one("#sidebar", OptionList).option_count > 4)


@scene(is_said=True)
async def search(chat: Chat, talk: Talk) -> None:
    await do(chat, "search", "SearchScreen")
    chat.app.screen.query_one(Input).value = talk.search
    await chat.until(lambda: chat.app.screen.query_one("#lines", OptionList).option_count > 0)


@scene(is_said=True)
async def tree(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)
    await do(chat, "tree", "Picker")


@scene(is_said=True)
async def alternatives(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)
    await do(chat, "alternatives", "AlternativesScreen")
    await chat.pilot.press("h", "n", "n")


@scene(is_said=True)
async def replay(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)
    await do(chat, "replay", "VariantScreen")
    await chat.pilot.press("enter")
    await shown(chat, "ReplayScreen")


@scene(is_said=True)
async def compare(chat: Chat, talk: Talk) -> None:
    chat.prompt.text = talk.prompt
    await do(chat, "compare", "CompareChoice")
    await chat.pilot.press("down", "space", "down", "space", "enter")
    await shown(chat, "CompareScreen")
    keys = chat.app.screen.query_one("#keys", Static)
    await chat.until(lambda: str(keys.content) == t(words.COMPARE_DONE))
    await chat.until_idle()


@scene()
async def compare_choice(chat: Chat, talk: Talk) -> None:
    chat.prompt.text = talk.prompt
    await do(chat, "compare", "CompareChoice")


@scene()
async def models(chat: Chat, talk: Talk) -> None:
    await do(chat, "choose_model", "ModelScreen")


@scene()
async def loading(chat: Chat, talk: Talk) -> None:
    status = Status(
        EngineState.LOADING, "1.0", 4711, MODEL, "model", plan=PLAN,
        progress=LoadProgress(STAGE, 9, 28, {"cuda:0": [9, 14], "cuda:1": [0, 14]}),
    )  # fmt: skip
    chat.link.push(LinkState(Phase.LOADING, MODEL, STAGE, 9 / 28, "model", status=status))
    await chat.until(lambda: "32%" in chat.status)
    await chat.say(talk.prompt)
    await chat.until(lambda: bool(chat.notice))


@scene()
async def failed(chat: Chat, talk: Talk) -> None:
    chat.link.answers = [[TextDelta(talk.answers[0][:30]), Failure(KILLED, "engine")]]
    await chat.say(talk.prompt)
    await chat.until_idle()
    await chat.until(lambda: "SIGKILL" in chat.notice and "■" in chat.shown)


@scene()
async def statistics(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)
    await do(chat, "statistics", "FactsScreen")


@scene()
async def plan(chat: Chat, talk: Talk) -> None:
    await do(chat, "plan", "ModelScreen")
    await chat.pilot.press("down", "enter")
    await shown(chat, "FactsScreen")


@scene()
async def report(chat: Chat, talk: Talk) -> None:
    await do(chat, "report", "FactsScreen")


@scene()
async def log(chat: Chat, talk: Talk) -> None:
    await do(chat, "log", "LogScreen")
    await chat.until(lambda: chat.app.screen.query_one(Log).line_count > 20)


@scene()
async def help(chat: Chat, talk: Talk) -> None:
    await do(chat, "help", "HelpScreen")


@scene()
async def palette(chat: Chat, talk: Talk) -> None:
    await do(chat, "palette", "CommandPalette")
    chat.app.screen.query_one(Input).value = t("Copy")
    found = chat.app.screen.query_one(OptionList)
    screen = chat.app.screen
    await chat.until(lambda: found.option_count > 0 and not any(one.node is screen for one in chat.app.workers))


@scene()
async def commands(chat: Chat, talk: Talk) -> None:
    """Slash commands, completed."""
    await chat.pilot.press("/", "s")
    await chat.until(lambda: bool(chat.app.screen.query_one("#suggestions").display))


@scene()
async def names(chat: Chat, talk: Talk) -> None:
    """What can stand behind a command, completed."""
    await chat.pilot.press("/", *"prompt", "space")
    await chat.until(lambda: bool(chat.app.screen.query_one("#suggestions").display))


@scene(is_said=True)
async def form(chat: Chat, talk: Talk) -> None:
    """The variables of a prompt; the draft is one of them."""
    chat.prompt.text = talk.draft
    chat.app.chat.do("prompt", "translate")
    await shown(chat, "Form")


@scene(is_said=True)
async def summary(chat: Chat, talk: Talk) -> None:
    """A summary in the place of all that was said."""
    await show_conversation(chat, talk)
    chat.app.chat.do("summarize")
    await chat.until_idle()
    await chat.until(lambda: chat.app.chat.desk.session.branch[-1].is_summary)


@scene()
async def endpoints(chat: Chat, talk: Talk) -> None:
    """Models elsewhere stand beside one's own."""
    work = [Choice(f"{name} @ work", "→ https://llm.example.org/v1") for name in ("large", "small")]
    chat.link.models = [*chat.link.models[:2], *work, *chat.link.models[2:]]
    await do(chat, "choose_model", "ModelScreen")


@scene()
async def not_fitting(chat: Chat, talk: Talk) -> None:
    """The model does not fit as it was asked for; what would is offered."""
    needed = (
        f"{MODEL} with 32768 tokens of context needs 44.00 GiB on cuda:0 (42.00 GiB weights, 1.50 GiB cache, "
        "512 MiB scratch), 21.20 GiB can be used of 23.60 GiB that are free. Use a smaller or more quantized "
        "checkpoint, more devices, or free some memory."
    )
    chat.link.fitting_context = 8192
    chat.link.push(LinkState(Phase.FAILED, MODEL, path="model", error=needed))
    await shown(chat, "Question")


@scene()
async def limit(chat: Chat, talk: Talk) -> None:
    chat.link.per_message = 9000
    await show_conversation(chat, talk)
    await chat.say(talk.draft)
    await shown(chat, "Question")


@scene(is_said=True)
async def left_out(chat: Chat, talk: Talk) -> None:
    """The first turn is no longer sent."""
    await show_conversation(chat, talk)
    desk = chat.app.chat.desk
    await desk.session.leave_out([message.message_id for message in desk.session.branch[:2]])
    desk.show_branch()
    await chat.pilot.press("pageup")


@scene(is_said=True)
async def ledger(chat: Chat, talk: Talk) -> None:
    chat.link.per_message = 120
    await show_conversation(chat, talk)
    chat.prompt.text = talk.draft
    await do(chat, "ledger", "FactsScreen")


@scene()
async def tools(chat: Chat, talk: Talk) -> None:
    await do(chat, "tools", "ToolboxScreen")


@scene(is_said=True)
async def approval(chat: Chat, talk: Talk) -> None:
    arguments = {"command": f"grep -rn '{talk.search}' ~/notes | head"}
    call = ToolCallDelta(0, json.dumps(arguments, ensure_ascii=False), "c1", "shell")
    chat.link.answers = [[TextDelta("…"), call, Done("tool_calls")]]
    await do(chat, "tools", "ToolboxScreen")
    chat.app.screen.query_one(SelectionList).select("shell")
    await chat.pilot.press("enter")
    await chat.until(lambda: chat.app.screen is chat.app.chat)
    await chat.say(talk.prompt)
    await shown(chat, "ApprovalScreen")


@scene()
async def schema(chat: Chat, talk: Talk) -> None:
    await do(chat, "schema", "Picker")


@scene(is_said=True)
async def attachment(chat: Chat, talk: Talk) -> None:
    chat.prompt.attach(talk.turns[0][1][-1], "notes.md")
    await do(chat, "view_attachment", "TextScreen")


@scene()
async def deleting(chat: Chat, talk: Talk) -> None:
    await show_conversation(chat, talk)
    await do(chat, "delete_conversation", "Question")


async def settle(chat: Chat) -> None:
    """Let nothing be under way any more when the screen is looked at: no cursor blinks, and the price is counted."""
    for one in chat.app.screen.query(Input):
        one.cursor_blink = False
    for area in chat.app.screen.query(TextArea):
        area.cursor_blink = False
    desk, text = chat.app.chat.desk, chat.prompt.text.strip()
    if desk.is_ready:
        has_price = bool(text) and not text.startswith("/")
        await chat.until(lambda: bool(desk.status.price) == has_price)
        await chat.until(lambda: not any(one.group in ("chips", "count") for one in chat.app.workers))
    await chat.pilot.pause()
