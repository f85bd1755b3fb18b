"""The conversation that is open: its branch of messages and what is sent to the model. No screen, no network."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qlocal.chat.store.records import Message, MessageState, Role
from qlocal.chat.store.threaded import Store
from qlocal.chat.summaries import INSTRUCTION, INTRODUCTION, sent, turns_of
from qlocal.chat.thinking import answer_of
from qlocal.chat.tools.shown import rounds_of

if TYPE_CHECKING:
    from qlocal.chat.client import ChatMessage


@dataclass(frozen=True)
class _Whole:
    """A whole branch as it would be sent, and of what: every pause in typing asks for it."""

    branch: list[Message]
    system: str | None
    messages: list[ChatMessage]


class Session:
    """One conversation. Every change is in the store before it is in `branch`."""

    def __init__(
        self, store: Store, system: str | None = None, sampling: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._store = store
        self.default_system = system
        self.default_sampling = dict(sampling)
        """What new conversations begin with."""
        self.system = system
        self.sampling: dict[str, Any] = dict(sampling)
        """Fields of a request, where the conversation has its own."""
        self.conversation_id: int | None = None
        self.branch: list[Message] = []
        """Replaced by another list when anything of it changes."""
        self._whole: _Whole | None = None

    def clear(self) -> None:
        """Begin a new conversation; it enters the store with its first message."""
        self.conversation_id, self.branch = None, []
        self.system, self.sampling = self.default_system, dict(self.default_sampling)

    async def open(self, conversation_id: int) -> None:
        """Show an earlier conversation where it was left."""
        conversation = await self._store.run(lambda history: history.conversation(conversation_id))
        self.branch = await self._store.run(lambda history: history.branch(conversation_id))
        self.conversation_id = conversation_id
        self.system = conversation.system if conversation is not None else self.default_system
        self.sampling = conversation.sampling if conversation is not None else {}

    async def add_prompt(self, text: str, model: str | None, beside: Message | None = None) -> Message:
        """Add what the user wrote behind the last message, or as a sibling of another."""
        if self.conversation_id is None:
            system = self.system
            self.conversation_id = await self._store.run(lambda h: h.new_conversation(text, model, system))
            await self.change_sampling(self.sampling)
        conversation_id = self.conversation_id
        parent_id = self.branch[-1].message_id if self.branch else None
        if beside is not None:
            parent_id = beside.parent_id
        await self._store.run(lambda history: history.add_message(conversation_id, parent_id, Role.USER, text))
        await self._reload(parent_id)
        return self.branch[-1]

    async def begin_answer(self, model: str | None, parent_id: int | None = None) -> Message:
        """Add an empty answer to a prompt, the last one if none is named; if that has one already, the new one is its
        sibling, and what followed the other is on its branch."""
        if parent_id is None and (prompt := self.last_prompt()) is not None:
            parent_id = prompt.message_id
        assert parent_id is not None and self.conversation_id is not None, "an answer follows a prompt"
        conversation_id, prompt_id = self.conversation_id, parent_id
        await self._store.run(lambda history: history.begin_answer(conversation_id, prompt_id, model))
        await self._store.run(lambda history: history.set_model(conversation_id, model))
        await self._reload(prompt_id)
        return self.branch[-1]

    async def begin_summary(self, message_ids: Sequence[int], model: str | None, prompt: Message | None) -> Message:
        """Add an empty summary of messages, before a prompt that waits for its answer, or else at the end. The branch
        stays as it is until `put_summary`."""
        assert self.conversation_id is not None, "a message is of a conversation"
        conversation_id = self.conversation_id
        parent_id = prompt.parent_id if prompt is not None else self.branch[-1].message_id
        summary_id = await self._store.run(
            lambda history: history.begin_summary(conversation_id, parent_id, model, message_ids)
        )
        meta = {"summary_of": list(message_ids)}
        streaming = MessageState.STREAMING
        return Message(summary_id, parent_id, Role.ASSISTANT, "", streaming, model, time.time(), meta)

    async def put_summary(self, summary: Message, prompt: Message | None) -> None:
        """Go on behind a summary that is whole: with the prompt, where one waits. The branch without it stays."""
        assert self.conversation_id is not None, "a message is of a conversation"
        conversation_id, prompt_id = self.conversation_id, None if prompt is None else prompt.message_id
        await self._store.run(lambda history: history.put_summary(conversation_id, summary.message_id, prompt_id))
        await self._reload()

    async def refresh(self) -> None:
        """Read the branch again."""
        if self.conversation_id is not None:
            await self._reload()

    async def refresh_last(self) -> None:
        """Read the last message again, after its answer was finished."""
        if self.conversation_id is not None:
            await self._reload(self.branch[-1].message_id if self.branch else None)

    async def step_branch(self, step: int, message_id: int | None = None) -> int | None:
        """Show the branch before (-1) or after (1) a message, the last answer if none is named. Returns the message
        that is shown in its place, None if there is none."""
        answer = self.last_answer()
        at = message_id if message_id is not None else None if answer is None else answer.message_id
        if at is None:
            return None
        siblings = await self._store.run(lambda history: history.siblings(at))
        idx = siblings.index(at) + step
        if not 0 <= idx < len(siblings):
            return None
        await self.select(siblings[idx])
        return siblings[idx]

    async def select(self, message_id: int) -> None:
        """Show the branch that goes through a message."""
        assert self.conversation_id is not None, "a message is of a conversation"
        conversation_id = self.conversation_id
        await self._store.run(lambda history: history.select_branch(conversation_id, message_id))
        await self._reload()

    async def add_answer(self, beside: Message, text: str) -> None:
        """Add an answer that the user wrote, as a sibling of another."""
        assert self.conversation_id is not None, "a message is of a conversation"
        conversation_id, parent_id = self.conversation_id, beside.parent_id
        await self._store.run(lambda history: history.add_message(conversation_id, parent_id, Role.ASSISTANT, text))
        await self._reload(parent_id)

    async def branch_off(self, message_id: int) -> None:
        """Begin a new conversation with what is shown up to a message."""
        assert self.conversation_id is not None, "a message is of a conversation"
        old_id = self.conversation_id
        upto = [m.message_id for m in self.branch].index(message_id) + 1
        kept = self.branch[:upto]
        old = await self._store.run(lambda history: history.conversation(old_id))
        assert old is not None, "an open conversation is in the store"
        new = replace(old, leaf_id=message_id)
        new_id = await self._store.run(lambda history: history.add_conversation(new, kept))
        await self.open(new_id)

    def last_prompt(self) -> Message | None:
        """Return the last message of the user."""
        return next((m for m in reversed(self.branch) if m.role is Role.USER), None)

    def last_answer(self) -> Message | None:
        """Return the last message if it is an answer."""
        last = self.branch[-1] if self.branch else None
        return last if last is not None and last.role is Role.ASSISTANT and not last.is_summary else None

    def answer_from(self, message: Message) -> Message | None:
        """Return a message of the branch if it is an answer, else the answer that comes next behind it."""
        rest = self.branch[self._place_of(message.message_id) :]
        first = next((one for one in rest if one.role is Role.ASSISTANT), None)
        return first if first is not None and not first.is_summary else None

    def request(self, prompt_id: int | None = None, without: Collection[int] = ()) -> list[ChatMessage]:
        """Return the conversation up to a prompt, the last one if none is named, as it is sent. Nothing is left out but
        what the user chose to, empty answers, and thoughts: models that get those back mix them into what they say.

        Two prompts in a row (the first one's answer failed) become one: many templates refuse them otherwise.
        """
        messages: list[ChatMessage] = [{"role": "system", "content": self.system}] if self.system else []
        if prompt_id is None and (prompt := self.last_prompt()) is not None:
            prompt_id = prompt.message_id
        ids = [message.message_id for message in self.branch]
        path = self.branch[: ids.index(prompt_id) + 1] if prompt_id in ids else self.branch
        for message in sent(path, without):
            if message.is_summary:
                _join(messages, Role.USER.value, f"{INTRODUCTION}\n\n{answer_of(message.content)}")
            elif message.role is Role.ASSISTANT:
                _add_answer(messages, message)
            elif message.content:
                _join(messages, message.role.value, message.content)
        return messages

    def request_for_summary(self, message_ids: Collection[int]) -> list[ChatMessage]:
        """Return what asks for a summary of these messages, the first ones that are sent."""
        others = {message.message_id for message in self.branch} - set(message_ids)
        messages = self.request(self.branch[-1].message_id, others)
        _join(messages, Role.USER.value, INSTRUCTION)
        return messages

    def turns(self) -> list[list[int]]:
        """Return the messages of every turn that is sent, first to last."""
        return turns_of(sent(self.branch))

    def request_with(self, draft: str) -> list[ChatMessage]:
        """Return what would be sent if a text were sent now."""
        if self._whole is None or self._whole.branch is not self.branch or self._whole.system != self.system:
            messages = self.request(self.branch[-1].message_id) if self.branch else self.request()
            self._whole = _Whole(self.branch, self.system, messages)
        drafted: list[ChatMessage] = []
        if draft.strip():
            # Only the last message may be joined with the draft: the others are shared with later calls.
            drafted = [dict(message) for message in self._whole.messages[-1:]]
            _join(drafted, Role.USER.value, draft)
        return [*self._whole.messages[: -1 if drafted else None], *drafted]

    async def leave_out(self, message_ids: Sequence[int], is_left_out: bool = True) -> None:
        """Send these no more, or again; they stay in the history."""
        await self._store.run(lambda history: history.leave_out(message_ids, is_left_out))
        await self._reload()

    async def change_system(self, system: str | None) -> None:
        """Give the conversation another system message."""
        self.system = system
        if (conversation_id := self.conversation_id) is not None:
            await self._store.run(lambda history: history.set_system(conversation_id, system))

    async def change_sampling(self, sampling: dict[str, Any]) -> None:
        """Give the conversation other fields of its requests; a new one keeps them from its first message on."""
        self.sampling = sampling
        if (conversation_id := self.conversation_id) is not None:
            await self._store.run(lambda history: history.set_sampling(conversation_id, sampling))

    async def _reload(self, since: int | None = None) -> None:
        """Read the branch from a message on, all of it if none is named: a turn of a long conversation must not cost
        more than one of a short one."""
        assert self.conversation_id is not None, "only a stored conversation is read again"
        conversation_id = self.conversation_id
        found = await self._store.run(lambda history: history.branch(conversation_id, since))
        kept = self._place_of(found[0].message_id) if found else 0
        self.branch = [*self.branch[:kept], *found]

    def _place_of(self, message_id: int) -> int:
        """Return where a message stands, 0 if nowhere. Asked for the last ones, nearly always."""
        behind = range(len(self.branch) - 1, -1, -1)
        return next((idx for idx in behind if self.branch[idx].message_id == message_id), 0)


def _add_answer(messages: list[ChatMessage], message: Message) -> None:
    """Add an answer with its tool calls and their results where they happened."""
    before = 0
    for one in rounds_of(message.meta):
        messages += one.messages(answer_of(message.content[before : one.at]))
        before = one.at
    if content := answer_of(message.content[before:]):
        _join(messages, message.role.value, content)


def _join(messages: list[ChatMessage], role: str, content: str) -> None:
    if messages and messages[-1]["role"] == role and "tool_calls" not in messages[-1]:
        messages[-1]["content"] += "\n\n" + content
    else:
        messages.append({"role": role, "content": content})
