"""What to do where a model does not fit: with which options it would, asked of the loader's own plan."""

from __future__ import annotations

from dataclasses import dataclass

from qlocal.chat import words
from qlocal.chat.features.base import Feature
from qlocal.chat.features.models import Models
from qlocal.chat.languages import t
from qlocal.chat.link_state import Link, LinkState, Phase
from qlocal.chat.screens.picker import Line, Question
from qlocal.errors import QLocalError

CONTEXTS = tuple(1 << bits for bits in range(17, 8, -1))
CACHE_TYPES = ("q8", "q8,q4", "q4")
"""By falling size: the first one that fits loses least."""


@dataclass(frozen=True)
class Way:
    """Options with which a model fits. An answer of the question has all fields None: another model is chosen."""

    max_context: int | None = None
    kv: str | None = None


OTHER = Way()


class Fitting(Feature):
    """Asks once for every load that failed; the message that waits is sent when one has gone well."""

    def on_link(self, before: LinkState, state: LinkState) -> None:
        has_failed = state.phase is Phase.FAILED and before.phase is not Phase.FAILED
        is_watched = self.desk.feature(Models).is_awaited  # who waits for the model says what became of it
        if has_failed and state.path is not None and self.desk.link is not None and not is_watched:
            self.desk.start(self._offer(self.desk.link, state.path), "fitting")

    async def _offer(self, link: Link, path: str) -> None:
        if await _fits(link, path, OTHER):
            return  # something else was wrong with it
        ways = await _ways(link, path)
        if not ways or self.desk.link_state.phase is not Phase.FAILED or not self.desk.screen.is_current:
            return
        lines = [Line(words.way_to_fit(way.max_context, way.kv), "", way) for way in ways]
        lines.append(Line(t(words.ANOTHER_MODEL), "", OTHER))
        chosen = await self.desk.ask(Question(t(words.DOES_NOT_FIT), lines, ""))
        if chosen == OTHER:
            self.desk.feature(Models).choose_model()
        elif chosen is not None:
            await link.select(path, chosen.max_context, chosen.kv)


async def _ways(link: Link, path: str) -> list[Way]:
    """Return the largest context that fits as the model was asked for, and the least loss that makes all of it fit."""
    tried = ([Way(max_context=context) for context in CONTEXTS], [Way(kv=kv) for kv in CACHE_TYPES])
    found: list[Way] = []
    for ways in tried:
        for way in ways:
            if await _fits(link, path, way):
                found.append(way)
                break
    return found


async def _fits(link: Link, path: str, way: Way) -> bool:
    try:
        return await link.plan(path, way.max_context, way.kv) is not None
    except QLocalError:
        return False
