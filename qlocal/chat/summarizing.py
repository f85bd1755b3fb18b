"""Have the model write a summary of messages, to be sent in their place. They stay in the history, and are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlocal.chat import words
from qlocal.chat.answer import Answer
from qlocal.chat.desk import Desk
from qlocal.chat.events import AnswerEvent, TextDelta
from qlocal.chat.store.records import Message
from qlocal.chat.thinking import answer_of, as_text
from qlocal.errors import EngineError


async def write_summary(desk: Desk, message_ids: Sequence[int], max_tokens: int, prompt: Message | None) -> bool:
    """Write it before the eyes of the user, who may stop it; return whether it stands in the messages' place now.

    prompt: a message that waits for its answer, and goes on behind the summary. Called by what occupies the turn.
    """
    assert desk.link is not None, "a link that is ready exists"
    session = desk.session
    request = session.request_for_summary(message_ids)
    summary = await session.begin_summary(message_ids, desk.link_state.model, prompt)
    shown = [message for message in session.branch if prompt is None or message.message_id != prompt.message_id]
    desk.show_messages([*shown, summary])
    answer = Answer(desk.store, summary.message_id, about=summary.meta)

    def show(event: AnswerEvent) -> None:
        if isinstance(event, TextDelta):
            desk.transcript.append_text(event.text)

    options: dict[str, Any] = {**session.sampling, "max_tokens": max_tokens}
    desk.say(words.SUMMARIZING)
    try:
        await answer.receive(as_text(desk.link.answer(request, options)), show)
        if answer.failure is not None:
            raise EngineError(answer.failure.message)
        if not answer_of(answer.text).strip():
            desk.warn(words.NO_SUMMARY)
            return False
        await session.put_summary(summary, prompt)
        desk.notice.clear()
        return True
    finally:
        # Also where it was stopped: then the conversation is as it was, and what was written a branch of it.
        desk.transcript.flush()
        desk.show_branch()
