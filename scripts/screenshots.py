"""Make the pictures in docs/: `make screenshots`. The real chat with a scripted history, machine and server, so that
they come out the same on every machine and need no model. The scenes are those of the snapshot tests.
"""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qlocal.chat.preferences import Preferences  # noqa: E402 - the checkout must be found first
from tests.chat.driving import Chat, run_chat  # noqa: E402
from tests.chat.scenes import SCENES, link_for, scripted_world, settle, write_history  # noqa: E402
from tests.chat.talks import CHINESE, ENGLISH, Talk  # noqa: E402

MAX_BYTES = 150_000


@dataclass(frozen=True)
class Picture:
    """A file in docs/, and the scene that it shows."""

    name: str
    scene: str
    talk: Talk = ENGLISH
    theme: str = "dark"
    size: tuple[int, int] = (104, 37)


PICTURES = (
    Picture("chat", "conversation"),
    Picture("chat-sidebar", "sidebar", size=(110, 30)),
    Picture("chat-search", "search", size=(104, 24)),
    Picture("chat-tree", "tree", size=(104, 24)),
    Picture("chat-alternatives", "alternatives", size=(96, 16)),
    Picture("chat-replay", "replay", size=(96, 16)),
    Picture("chat-compare", "compare", size=(130, 16)),
    Picture("chat-plan", "plan", size=(104, 22)),
    Picture("chat-statistics", "statistics", size=(104, 36)),
    Picture("chat-light", "writing", CHINESE, "light"),
)


def take(picture: Picture) -> str:
    """Return a picture as SVG."""
    taken: list[str] = []

    async def use(chat: Chat) -> None:
        await SCENES[picture.scene].reach(chat, picture.talk)
        await settle(chat)
        taken.append(chat.app.export_screenshot(simplify=True))

    with tempfile.TemporaryDirectory() as home, chdir(home), scripted_world() as clock:
        folder = Path(home)
        write_history(folder / "history.sqlite3", picture.talk, clock)
        preferences = Preferences(language=picture.talk.language, theme=picture.theme)
        run_chat(folder, link_for(picture.talk, folder), use, size=picture.size, preferences=preferences)
    # Rich numbers its pictures by their content in some releases and by chance in others.
    return re.sub(r"terminal-\d+", f"terminal-{picture.name}", taken[0])


def main() -> None:
    for old in (ROOT / "docs").glob("chat*.svg"):
        if old.stem not in {picture.name for picture in PICTURES}:
            old.unlink()
    for picture in PICTURES:
        path, svg = ROOT / "docs" / f"{picture.name}.svg", take(picture)
        if len(svg.encode()) > MAX_BYTES:
            sys.exit(f"{path.name} has {len(svg.encode()):,} bytes, at most {MAX_BYTES:,} are kept")
        path.write_text(svg, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(svg.encode()):,} bytes")


if __name__ == "__main__":
    main()
