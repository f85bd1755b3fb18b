"""The open conversation: what it has in memory is what the store has, and a turn reads only what it changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qlocal.chat.entry_words import entry_of
from qlocal.chat.session import Session
from qlocal.chat.shown_entries import ShownEntries
from qlocal.chat.store import rows
from qlocal.chat.store.records import MessageState, Role
from qlocal.chat.store.threaded import Store
from qlocal.chat.summaries import replaced_in

NUM_EARLIER = 200


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Store, Session]]:
    store = Store(tmp_path / "history.sqlite3")
    await store.open()
    yield store, Session(store, "be brief")
    await store.close()


def in_session(tmp_path: Path, scenario: Callable[[Store, Session], Awaitable[None]]) -> None:
    async def run() -> None:
        async with opened(tmp_path) as (store, session):
            await scenario(store, session)

    asyncio.run(run())


async def answered(store: Store, session: Session, text: str) -> None:
    message = await session.begin_answer("m")
    await store.run(lambda h: h.finish_answer(message.message_id, text, MessageState.COMPLETE, {"n": len(text)}))
    await session.refresh_last()


async def make_long(store: Store, session: Session) -> None:
    conversation_id = await store.run(lambda h: h.new_conversation("long", "m", None))
    parent: int | None = None
    for number in range(NUM_EARLIER):
        role = Role.ASSISTANT if number % 2 else Role.USER
        parent = await store.run(lambda h, p=parent, r=role, n=number: h.add_message(conversation_id, p, r, f"no {n}"))
    await session.open(conversation_id)


def test_a_turn_of_a_long_conversation_reads_its_own_messages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = rows.message
    monkeypatch.setattr(rows, "message", lambda row: (read.append(row["id"]), whole(row))[1])

    async def scenario(store: Store, session: Session) -> None:
        await make_long(store, session)
        read.clear()
        await session.add_prompt("more", "m")
        await answered(store, session, "an answer")
        await answered(store, session, "another one")
        assert len(read) <= 8 and set(read) == {NUM_EARLIER, *range(NUM_EARLIER + 1, NUM_EARLIER + 4)}
        assert len(session.branch) == NUM_EARLIER + 2
        last = session.branch[-1]
        assert (last.content, last.siblings, last.sibling_idx) == ("another one", 2, 1)
        assert session.branch == await store.run(lambda h: h.branch(1))

    in_session(tmp_path, scenario)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_the_session_has_what_the_store_has(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def scenario(store: Store, session: Session) -> None:
        shown = ShownEntries()
        await session.add_prompt("first", "m")
        for number in range(60):
            one = chance.choice(session.branch)
            match chance.randrange(8):
                case 0 | 1:
                    await session.add_prompt(f"prompt {number}", "m")
                case 2 | 3:
                    await answered(store, session, f"answer {number}")
                case 4 if one.role is Role.USER:
                    await session.add_prompt(f"edited {number}", "m", one)
                case 4:
                    await session.add_answer(one, f"written {number}")
                case 5:
                    await session.leave_out([one.message_id], chance.random() < 0.5)
                case 6:
                    await session.step_branch(chance.choice([-1, 1]), one.message_id)
                case 7 if len(session.branch) > 1:
                    await store.run(lambda h, m=session.branch[-1].message_id: h.prune(1, m))
                    await session.refresh()
            stored = await store.run(lambda h: h.branch(1))
            assert session.branch == stored
            replaced = replaced_in(stored)
            assert shown.entries(session.branch) == [entry_of(m, m.message_id in replaced) for m in stored]
            fresh = Session(store, "be brief")
            await fresh.open(1)
            fresh.system = session.system
            assert session.request_with("draft") == fresh.request_with("draft")
            assert session.request_with("") == fresh.request_with("")

    in_session(tmp_path, scenario)


def test_what_another_chat_does_to_the_conversation_is_seen_with_the_next_turn(tmp_path: Path) -> None:
    async def scenario(store: Store, session: Session) -> None:
        await make_long(store, session)
        before = session.branch[-1].message_id
        await store.run(lambda h: h.prune(1, session.branch[50].message_id))  # as another chat would
        await session.refresh_last()
        assert [m.content for m in session.branch] == [f"no {n}" for n in range(50)]
        assert before not in {m.message_id for m in session.branch}
        await store.run(lambda h: h.delete(1))
        await session.refresh_last()
        assert session.branch == []

    in_session(tmp_path, scenario)
