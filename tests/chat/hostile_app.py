"""The real chat at a terminal with strangers that all say the same bad thing; walks through every action by itself.

`python -m tests.chat.hostile_app PAYLOADS FOLDER`, the payloads as a list in JSON, one chat after the other in one
process. Ends by itself, with 0 if it came to the end; FOLDER/seen.json then names the screens that were opened.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from textual._wait import wait_for_idle
from textual.screen import Screen

from qlocal.chat.app import ChatApp
from qlocal.chat.entry import Entry
from qlocal.chat.events import Done, Failure, TextDelta
from qlocal.chat.features import ACTIONS
from qlocal.chat.link_state import Choice, LinkState, Phase, ShownPlan, Variant
from qlocal.chat.logprobs import Candidate, TokenLogprobs
from qlocal.chat.preferences import Preferences
from qlocal.chat.replay import Replay, ReplayedToken
from qlocal.chat.screens.alternatives import AlternativesScreen
from qlocal.chat.screens.approval import ApprovalScreen
from qlocal.chat.screens.compare import CompareChoice, CompareScreen
from qlocal.chat.screens.picker import Line, Question
from qlocal.chat.screens.replay import ReplayScreen
from qlocal.chat.screens.text import TextScreen
from qlocal.chat.screens.toolbox import Offer, ToolboxScreen
from qlocal.chat.screens.variants import VariantScreen
from qlocal.chat.store.threaded import Store
from qlocal.chat.tools.base import ToolCall
from qlocal.chat.widgets.transcript import Transcript
from qlocal.config import ChatOptions
from qlocal.schema import EngineState, Status
from tests.chat.scripted import ScriptedLink

LOOK_S = 0.02
MARK = "@@@ end of "
CLOSE_S = 60.0
WALKED = [action for action in ACTIONS if action.name not in ("quit", "suspend")]


def answer_with(payload: str) -> str:
    """Every place of Markdown where a text can stand."""
    line = payload.replace("\n", " ")
    parts = [
        f"<think>\n{payload}\n</think>",
        f"# {line}",
        f"{payload} *{line}* `{line}` [{line}](http://{line}) ![{line}]({line})",
        f"- {line}",
        f"> {line}",
        f"| {line} | b |\n|---|---|\n| {line} | c |",
        f"```{line}\n{payload}\n```",
        f"```py\nx = '{line}'\n```",
        f"\\( {line} \\)",
        f"$$\n{line}\n$$",
        f"<b>{line}</b> end",
    ]
    return "\n\n".join(parts)


def link_of(payload: str, folder: Path) -> ScriptedLink:
    """A server whose every word is the payload."""
    log = folder / "server.log"
    log.write_text(f"{payload}\n" * 5, encoding="utf-8", errors="surrogateescape")
    model = folder / "model"
    model.mkdir(exist_ok=True)
    status = Status(EngineState.READY, payload, 1, payload, str(model), error=payload)
    state = LinkState(
        Phase.READY,
        payload,
        stage=payload,
        path=str(model),
        max_context=4096,
        error=payload,
        memory=payload,
        status=status,
    )
    raw = payload.encode("utf-8", "replace")
    tokens = [
        TokenLogprobs(Candidate(i, raw, -0.1), (Candidate(i, raw, -0.1), Candidate(9, raw, -2.0))) for i in range(4)
    ]
    return ScriptedLink(
        [[TextDelta(answer_with(payload)), Done("stop")], [TextDelta(payload), Failure(payload, payload)]],
        first_states=[state],
        models=[Choice(payload, payload), Choice(payload + "2", payload, is_here=False)],
        at_hand=[Variant(payload, str(model), payload, 5, False, True)],
        scores=(tokens, tokens),
        distances=([0.1] * 4, [0.1] * 4),
        log=log,
        plans={payload: ShownPlan([payload, payload], [payload])},
    )


async def walk(app: ChatApp, payload: str, seen: set[str]) -> None:
    """Ask, then do everything that can be done, and look at what opens."""
    desk = app.chat.desk
    while not (app.chat.is_mounted and app.chat.query(Transcript) and desk.link is not None):
        await asyncio.sleep(LOOK_S)
    await _look(app, seen)
    await _back_to(app, app.chat)
    for text in (payload + " one", payload + " two"):
        desk.prompt.text = text
        await _look(app, seen)
        app.chat.post_message(_submitted(text))
        await _until_idle(app)
    desk.prompt.text = payload
    for action in WALKED:
        for argument in ["", payload] if action.argument else [""]:
            app.chat.do(action.name, argument)
            await _look(app, seen)
            # Of the palette any command could be the second one, quitting too.
            for key in ("down",) if action.name == "palette" else ("down", "enter"):
                if app.screen is not app.chat:
                    app.simulate_key(key)
                    await _look(app, seen)
            await _back_to(app, app.chat)
        desk.warn(payload)
        desk.say(payload)
        app.notify(payload)
    for screen in unasked(payload):
        app.push_screen(screen)
        await _look(app, seen)
        if isinstance(screen, CompareScreen):
            screen.finish(0, Entry(0, False, answer_with(payload), payload, payload, payload))
            screen.end()
            await _look(app, seen)
        await _back_to(app, app.chat)
    app.exit(0)


def unasked(payload: str) -> list[Screen[Any]]:
    """What opens by itself, not by an action: the question before a tool, and the one at the limit."""
    call = ToolCall("c1", payload, json.dumps({payload: payload, "list": [payload]}))
    lines = [Line(payload, payload, 1), Line(payload, payload, None)]
    candidate = Candidate(1, payload.encode("utf-8", "replace"), -0.1)
    tokens = [TokenLogprobs(candidate, (candidate, candidate)) for _ in range(3)]
    variant = Variant(payload, payload, payload, 5, False, True)
    replayed = Replay(payload, payload, [ReplayedToken(token, token, 0.2) for token in tokens])
    return [
        ApprovalScreen(call, payload),
        ApprovalScreen(ToolCall("c1", payload, payload), payload),
        Question(payload, lines, payload),
        AlternativesScreen(payload, tokens),
        ReplayScreen(replayed),
        CompareChoice([Choice(payload, payload)], payload),
        ToolboxScreen([Offer(payload, payload, True)], payload),
        TextScreen(payload, payload),
        VariantScreen([variant]),
        CompareScreen(payload, [payload, payload], lambda: None),
    ]


async def _look(app: ChatApp, seen: set[str]) -> None:
    """Let the screen be drawn: wait until this process has nothing to do any more."""
    seen.add(type(app.screen).__name__)
    await wait_for_idle(LOOK_S)
    seen.add(type(app.screen).__name__)


async def _until_idle(app: ChatApp) -> None:
    while any(worker.group == "turn" for worker in app.workers):
        await asyncio.sleep(LOOK_S)
    await wait_for_idle(LOOK_S)


async def _back_to(app: ChatApp, home: Screen[Any]) -> None:
    deadline = time.monotonic() + CLOSE_S
    while app.screen is not home:
        if time.monotonic() > deadline:
            app.exit(3, message=f"{app.screen} does not close")
            return
        app.simulate_key("escape")
        await wait_for_idle(LOOK_S)


def _submitted(text: str) -> Any:
    from qlocal.chat.messages import PromptSubmitted

    return PromptSubmitted(text)


def main() -> int:
    payloads, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    seen: set[str] = set()
    for number, payload in enumerate(payloads):
        home = folder / str(number)
        home.mkdir()
        code = run(payload, home, seen)
        if code:
            return code
        print(f"{MARK}{number}{MARK}", file=sys.stderr, flush=True)
    (folder / "seen.json").write_text(json.dumps(sorted(seen)))
    return 0


def run(payload: str, folder: Path, seen: set[str]) -> int:
    """Walk through one chat; returns its exit code."""
    os.chdir(folder)
    link = link_of(payload, folder)
    store = Store(folder / "history.sqlite3")
    options = ChatOptions(model="m", system=payload)
    app = ChatApp(options, store, lambda _options: link, Preferences(language="en"))
    app.call_later(lambda: app.run_worker(walk(app, payload, seen)))
    try:
        code = app.run()
    finally:
        store.close_now()
    return 4 if code is None else code


if __name__ == "__main__":
    sys.exit(main())
