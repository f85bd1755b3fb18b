"""A link without a server: states and answers come from a script. For tests and screenshots."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlocal.chat.events import AnswerEvent, Done, Logprobs, TextDelta, TokenCount, Usage
from qlocal.chat.link_state import AnswerStream, Choice, LinkState, Phase, ShownPlan, Variant
from qlocal.chat.logprobs import Candidate, Scored, TokenLogprobs

READY = LinkState(Phase.READY, "tiny-model", max_context=4096)


def answer_of(text: str, pieces: int = 4) -> list[AnswerEvent]:
    """The events of an answer that arrives in pieces of so many characters."""
    deltas: list[AnswerEvent] = [TextDelta(text[i : i + pieces]) for i in range(0, len(text), pieces)]
    usage = Usage(20, len(deltas), tokens_per_s=42.5, cached_tokens=8, max_context=4096)
    return [*deltas, usage, Done("stop")]


def scored(*rows: dict[str, float]) -> list[TokenLogprobs]:
    """Tokens from their candidates' probabilities, the written one first; ids are made from the texts."""
    found = []
    for row in rows:
        candidates = [Candidate(sum(text.encode()), text.encode(), math.log(p)) for text, p in row.items()]
        found.append(TokenLogprobs(candidates[0], tuple(sorted(candidates, key=lambda one: -one.logprob))))
    return found


def scored_answer(tokens: list[TokenLogprobs]) -> list[AnswerEvent]:
    """The events of an answer of such tokens."""
    events: list[AnswerEvent] = []
    for token in tokens:
        events += [TextDelta(token.chosen.raw.decode()), Logprobs((token,))]
    return [*events, Done("stop")]


@dataclass
class ScriptedLink:
    """Answers are taken in turn, the last one again and again. An int in an answer waits for `go_on` so often."""

    answers: list[list[AnswerEvent | asyncio.Event]]
    first_states: list[LinkState] = field(default_factory=lambda: [READY])
    models: list[Choice] = field(default_factory=lambda: [Choice("tiny-model"), Choice("other-model")])
    counted: TokenCount | None = None
    per_message: int | None = None
    """So many tokens has every message, if it is told."""
    per_char: int = 0
    """And so many every character of it, beside them; a tool has a hundred."""
    max_context: int = 4096
    requests: list[list[dict[str, str]]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    scores: tuple[list[TokenLogprobs], ...] = ()
    """What a first and a second model give an answer."""
    distances: tuple[list[float], list[float]] = ([], [])
    scored: list[tuple[Any, str | list[int], int]] = field(default_factory=list)
    at_hand: list[Variant] = field(default_factory=list)
    is_own: bool = True
    log: Path | None = None
    plans: dict[str, ShownPlan] = field(default_factory=dict)
    selected: list[str] = field(default_factory=list)
    num_cancelled: int = 0
    _new_states: asyncio.Queue[LinkState] = field(default_factory=asyncio.Queue)

    def push(self, *states: LinkState) -> None:
        for state in states:
            self._new_states.put_nowait(state)

    async def states(self) -> Any:
        for state in self.first_states:
            yield state
        while True:
            yield await self._new_states.get()

    async def choices(self) -> list[Choice]:
        return self.models

    async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
        self.selected.append(model)
        self.max_context = max_context or 4096
        self.push(LinkState(Phase.READY, model, max_context=self.max_context))

    @property
    def own(self) -> ScriptedLink | None:
        return self if self.is_own else None

    @property
    def log_path(self) -> Path | None:
        return self.log

    async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
        return self.plans.get(model)

    async def tokenize(self, messages: list[dict[str, str]]) -> list[int]:
        return list(range(3 * len(messages)))

    async def variants(self) -> list[Variant]:
        return self.at_hand

    async def score(
        self,
        prompt: list[dict[str, str]] | list[int],
        answer: str | list[int],
        top: int,
        *,
        keep: bool = False,
        against: str | None = None,
    ) -> Scored:
        self.scored.append((prompt, answer, top))
        if against is not None:
            return Scored(self.scores[1], None, *self.distances)
        return Scored(self.scores[0], "kept" if keep else None)

    async def count(
        self, messages: list[dict[str, str]], tools: list[dict[str, Any]] | None = None
    ) -> TokenCount | None:
        if self.per_message is not None:
            sizes = [self.per_message + len(message["content"]) * self.per_char for message in messages]
            return TokenCount(sum(sizes) + 100 * len(tools or []), self.max_context)
        return self.counted

    def answer(self, messages: list[dict[str, str]], options: dict[str, Any] | None = None) -> AnswerStream:
        self.requests.append([dict(message) for message in messages])
        self.options.append(options or {})
        events = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return self._stream(events)

    async def aclose(self) -> None:
        return None

    async def _stream(self, events: Iterable[AnswerEvent | asyncio.Event]) -> AnswerStream:
        try:
            for event in events:
                await asyncio.sleep(0)
                if isinstance(event, asyncio.Event):
                    await event.wait()
                else:
                    yield event
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
