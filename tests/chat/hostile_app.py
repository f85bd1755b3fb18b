"""The real chat at a terminal with strangers that all say the same bad thing; walks through every action by itself.

`python -m tests.chat.hostile_app PAYLOAD FOLDER`, the payload in JSON. Ends by itself, with 0 if it came to the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from textual.screen import Screen

from qlocal.chat.app import ChatApp
from qlocal.chat.events import Done, Failure, TextDelta
from qlocal.chat.features import ACTIONS
from qlocal.chat.link_state import Choice, LinkState, Phase, ShownPlan, Variant
from qlocal.chat.logprobs import Candidate, TokenLogprobs
from qlocal.chat.preferences import Preferences
from qlocal.chat.store.threaded import Store
from qlocal.chat.widgets.transcript import Transcript
from qlocal.config import ChatOptions
from qlocal.schema import EngineState, Status
from tests.chat.scripted import ScriptedLink

LOOK_S = 0.12
CLOSE_S = 60.0
WALKED = [action.name for action in ACTIONS if action.name not in ("quit", "suspend")]


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


async def walk(app: ChatApp, payload: str) -> None:
    """Ask, then do everything that can be done, and look at what opens."""
    desk = app.chat.desk
    while not (app.chat.is_mounted and app.chat.query(Transcript) and desk.link is not None):
        await asyncio.sleep(LOOK_S)
    await asyncio.sleep(2 * LOOK_S)
    await _back_to(app, app.chat)
    for text in (payload + " one", payload + " two"):
        desk.prompt.text = text
        await asyncio.sleep(LOOK_S)
        app.chat.post_message(_submitted(text))
        await asyncio.sleep(4 * LOOK_S)
    desk.prompt.text = payload
    for name in WALKED:
        app.chat.do(name)
        await asyncio.sleep(LOOK_S)
        # Of the palette any command could be the second one, quitting too.
        keys = ("down",) if name == "palette" else ("down", "enter")
        for key in keys if app.screen is not app.chat else ():
            app.simulate_key(key)
            await asyncio.sleep(LOOK_S)
        await _back_to(app, app.chat)
        desk.warn(payload)
        desk.say(payload)
        app.notify(payload)
    app.exit(0)


async def _back_to(app: ChatApp, home: Screen[Any]) -> None:
    deadline = time.monotonic() + CLOSE_S
    while app.screen is not home:
        if time.monotonic() > deadline:
            app.exit(3, message=f"{app.screen} does not close")
            return
        app.simulate_key("escape")
        await asyncio.sleep(LOOK_S)


def _submitted(text: str) -> Any:
    from qlocal.chat.messages import PromptSubmitted

    return PromptSubmitted(text)


def main() -> int:
    payload, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    link = link_of(payload, folder)
    store = Store(folder / "history.sqlite3")
    options = ChatOptions(model="m", system=payload)
    app = ChatApp(options, store, lambda _options: link, Preferences(language="en"))
    app.call_later(lambda: app.run_worker(walk(app, payload)))
    try:
        code = app.run()
    finally:
        store.close_now()
    return 4 if code is None else code


if __name__ == "__main__":
    sys.exit(main())
