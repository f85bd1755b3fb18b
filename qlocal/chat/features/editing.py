"""Changing what was said: every change is a branch, and what was there before stays."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import entry_words, words
from qlocal.chat.actions import Action
from qlocal.chat.answer import Begun
from qlocal.chat.desk import Desk
from qlocal.chat.features.base import Feature
from qlocal.chat.features.conversations import Conversations
from qlocal.chat.features.turns import Turns
from qlocal.chat.languages import t
from qlocal.chat.logprobs import unpack
from qlocal.chat.screens.picker import Line, Picker, Question
from qlocal.chat.store.records import Message, MessageState, Role


class Editing(Feature):
    """Editing, going on, and pruning."""

    ACTIONS: ClassVar = (
        Action("edit_message", "alt+e", "Edit", "Edit the message under the cursor, else your last; the old one stays"),
        Action(
            "continue_answer", "alt+g", "Go on", "Let the last answer go on where it was stopped or cut", is_shown=False
        ),
        Action(
            "run_again", "", "Run again", "Repeat the last answer with its seed and compare the text", is_shown=False
        ),
        Action("tree", "f8", "Tree", "Show all branches of the conversation, and go to one"),
        Action(
            "prune",
            "",
            "Prune",
            "Delete the message at the cursor and all below it, after a question",
            is_shown=False,
        ),
        Action("new_from_here", "", "From here", "Begin a new conversation with all up to the cursor", is_shown=False),
    )

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._edited: Message | None = None

    def on_conversation(self) -> None:
        self._leave()

    def edit_message(self) -> None:
        message = self.desk.message_at_cursor or self.desk.session.last_prompt()
        if message is None:
            self.desk.say(words.NOTHING_TO_EDIT)
            return
        if message.is_summary:
            self.desk.say(words.SUMMARY_STAYS)
            return
        self._edited = message
        prompt = self.desk.prompt
        prompt.text = message.content
        prompt.move_cursor(prompt.document.end)
        prompt.border_title = t(words.EDITING)
        prompt.focus()

    def take(self, text: str) -> bool:
        """Take a prompt as the new text of the message that is edited. Return whether one is."""
        message, turns = self._edited, self.desk.feature(Turns)
        if message is None:
            return False
        if turns.is_busy:
            self.desk.say(words.STILL_BUSY)
            return True
        self._leave()
        if message.role is Role.USER:
            turns.send_edited(text, message)
        else:
            self.desk.prompt.forget()
            self.desk.start(self._replace_answer(message, text), "history")
        return True

    def leave(self) -> bool:
        """Stop editing; return whether anything was edited."""
        if self._edited is None:
            return False
        self._leave()
        self.desk.prompt.forget()
        return True

    def continue_answer(self) -> None:
        answer = self.desk.session.last_answer()
        if answer is None or not answer.content or answer.parent_id is None:
            self.desk.say(words.NO_ANSWER_YET)
        else:
            self.desk.feature(Turns).occupy(self._go_on(answer, answer.parent_id))

    def run_again(self) -> None:
        answer = self.desk.session.last_answer()
        if answer is None or answer.parent_id is None:
            self.desk.say(words.NO_ANSWER_YET)
        else:
            self.desk.feature(Turns).occupy(self.desk.feature(Turns).repeat(answer, answer.parent_id))

    def tree(self) -> None:
        if self.desk.session.conversation_id is None:
            self.desk.say(words.NO_BRANCHES)
        else:
            self.desk.start(self._walk_tree(self.desk.session.conversation_id), "choose")

    def prune(self) -> None:
        message = self.desk.message_at_cursor or (self.desk.session.branch[-1] if self.desk.session.branch else None)
        if message is None or self.desk.session.conversation_id is None:
            self.desk.say(words.NOTHING_TO_EDIT)
        elif self.desk.feature(Turns).is_busy:
            self.desk.say(words.STILL_BUSY)
        else:
            self.desk.start(self._prune(message, self.desk.session.conversation_id), "choose")

    def new_from_here(self) -> None:
        message = self.desk.message_at_cursor or (self.desk.session.branch[-1] if self.desk.session.branch else None)
        if message is None:
            self.desk.say(words.NOTHING_TO_EDIT)
        else:
            self.desk.start(self._branch_off(message), "history")

    def _leave(self) -> None:
        self._edited = None
        self.desk.prompt.border_title = ""

    async def _replace_answer(self, message: Message, text: str) -> None:
        await self.desk.session.add_answer(message, text)
        self.desk.feature(Conversations).show()

    async def _go_on(self, answer: Message, prompt_id: int) -> None:
        packed = await self.desk.store.run(lambda history: history.logprobs(answer.message_id))
        tokens = () if packed is None else tuple(unpack(packed))
        await self.desk.feature(Turns).go_on_with(prompt_id, Begun(answer.content, tokens))

    async def _walk_tree(self, conversation_id: int) -> None:
        messages = await self.desk.store.run(lambda history: history.messages(conversation_id))
        shown = {message.message_id for message in self.desk.session.branch}
        chosen = await self.desk.ask(Picker(t(words.TREE), tree_lines(messages, shown), t(words.NO_BRANCHES)))
        if chosen is None:
            return
        if chosen not in shown:
            await self.desk.session.select(chosen)
            self.desk.feature(Conversations).show()
        self.desk.transcript.go_to_entry(chosen)

    async def _prune(self, message: Message, conversation_id: int) -> None:
        lines = [Line(t(words.KEEP_IT), "", False), Line(t(words.DELETE_IT), words.first_line(message.content), True)]
        if await self.desk.ask(Question(t(words.PRUNE), lines, "")):
            count = await self.desk.store.run(lambda history: history.prune(conversation_id, message.message_id))
            await self.desk.session.refresh()
            self.desk.feature(Conversations).show()
            self.desk.say(words.pruned(count))

    async def _branch_off(self, message: Message) -> None:
        await self.desk.session.branch_off(message.message_id)
        self.desk.feature(Conversations).show()
        self.desk.say(words.BRANCHED_OFF)


def tree_lines(messages: list[Message], shown: set[int]) -> list[Line[int]]:
    """Return the tree of a conversation, a line a message, in the order in which one would read it: only where it
    branches are lines moved to the right. ● marks what is shown."""
    children: dict[int | None, list[Message]] = {}
    for message in messages:
        children.setdefault(message.parent_id, []).append(message)
    lines: list[Line[int]] = []
    stack = [(message, 0) for message in reversed(children.get(None, []))]
    while stack:
        message, depth = stack.pop()
        below = children.get(message.message_id, [])
        mark = "●" if message.message_id in shown else "○"
        who = entry_words.speaker(message)
        stopped = f" · {t(words.STOPPED)}" if message.state is MessageState.STOPPED else ""
        title = f"{'  ' * depth}{mark} {who}: {words.first_line(message.content)}"
        lines.append(Line(title, stopped, message.message_id))
        depth += len(below) > 1
        stack += [(child, depth) for child in reversed(below)]
    return lines
