"""From a conversation to ids: hide what it says, render, cut at the template's control tokens, encode the pieces.

Where the tokenizer puts a blank in front of every text (SentencePiece), each piece after a control token and each
answer gets exactly one: the template's own blank there is the same blank, not a second one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlocal.guard.errors import JobError
from qlocal.guard.marks import Fragments, Marks
from qlocal.guard.templates import render
from qlocal.guard.vocabulary import Matcher, Vocabulary


@dataclass(frozen=True)
class ChatEncoder:
    """A vocabulary together with what hiding needs, prepared once."""

    vocabulary: Vocabulary

    @cached_property
    def _fragments(self) -> Fragments:
        return Fragments(self.vocabulary.matcher)

    @cached_property
    def _special_matcher(self) -> Matcher:
        return Matcher(token for token in self.vocabulary.added if token.is_special)

    def encode_chat(self, template: str, conversation: dict[str, Any], constants: dict[str, Any]) -> list[int]:
        """Return the ids of the rendered conversation. `conversation` is foreign text, `constants` is ours.

        conversation: messages, tools and further variables of the template; constants: bos_token, eos_token, ...
        """
        marks = Marks(template, conversation)
        cut = marks.fresh()
        hidden = self._hidden_conversation(conversation, marks, cut)
        return self._encode(render(template, hidden | constants), marks, cut)

    def encode_marked_up(self, text: str) -> list[int]:
        """Return the ids of a prompt that its author wrote with control tokens in it."""
        marks = Marks(text, None)
        return self._encode(text, marks, marks.fresh())

    def encode_answer(self, text: str) -> list[int]:
        """Return the ids of an answer, or the beginning of one, as it stands behind the prompt that asks for it."""
        marks = Marks("", text)
        hidden = marks.hide(text, self._special_matcher, None)
        return self._encode(hidden, marks, marks.fresh(), follows=True)

    def end_of_turn(self, template: str, constants: dict[str, Any]) -> int | None:
        """Return the control token that the template puts after an answer, if it does and accepts the question."""
        answer = "\U0010f000"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = render(template, {"messages": messages, "tools": None} | constants)
        except JobError:
            return None  # a template for something else than conversations
        _, found, rest = text.partition(answer)
        first = next(self.vocabulary.matcher.find(rest), None) if found else None
        return first[2].id if first is not None and not rest[: first[0]].strip() else None

    def _hidden_conversation(self, conversation: dict[str, Any], marks: Marks, cut: str) -> dict[str, Any]:
        hidden = {key: self._hide(value, marks) for key, value in conversation.items() if key != "messages"}
        messages = conversation.get("messages") or []
        return hidden | {"messages": [self._hide_message(message, marks, cut) for message in messages]}

    def _hide_message(self, message: Any, marks: Marks, cut: str) -> Any:
        if not isinstance(message, dict):
            return self._hide(message, marks)
        is_answer = message.get("role") == "assistant"
        # Tokens like <tool_call> are no control tokens: in an answer, the model itself has written them.
        matcher = self._special_matcher if is_answer else self.vocabulary.matcher
        hidden = {key: self._hide(value, marks, matcher) for key, value in message.items() if key != "role"}
        if is_answer and self.vocabulary.has_dummy_prefix and isinstance(hidden.get("content"), str):
            hidden["content"] = _with_cut(hidden["content"], cut)
        role = message.get("role")
        # A role may be a part of a control token (<|user|>), so only whole ones are hidden.
        hidden_role = marks.hide(role, self.vocabulary.matcher, None) if isinstance(role, str) else role
        return {key: hidden_role if key == "role" else hidden[key] for key in message}

    def _hide(self, value: Any, marks: Marks, matcher: Matcher | None = None) -> Any:
        matcher = matcher or self.vocabulary.matcher
        if isinstance(value, str):
            return marks.hide(value, matcher, self._fragments)
        if isinstance(value, dict):
            return {self._hide(key, marks, matcher): self._hide(item, marks, matcher) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(item, marks, matcher) for item in value]
        return value

    def _encode(self, text: str, marks: Marks, cut: str, follows: bool = False) -> list[int]:
        """Encode what is rendered; `follows` where a control token stands before it."""
        ids: list[int] = []
        position = 0
        for start, end, token in self.vocabulary.matcher.find(text):
            ids += self._encode_between(text[position:start], marks, cut, is_first=position == 0 and not follows)
            ids.append(token.id)
            position = end
        return ids + self._encode_between(text[position:], marks, cut, is_first=position == 0 and not follows)

    def _encode_between(self, text: str, marks: Marks, cut: str, is_first: bool) -> list[int]:
        """Encode the text between two control tokens; `is_first` where none stands before it."""
        if not self.vocabulary.has_dummy_prefix:
            return self.vocabulary.encode_plain(marks.restore(text), is_first)
        ids: list[int] = []
        for k, piece in enumerate(_pieces(text, cut)):
            if k > 0 or not is_first:
                piece = piece.removeprefix(" ")
            ids += self.vocabulary.encode_plain(marks.restore(piece), is_first and k == 0)
        return ids


def _with_cut(content: str, cut: str) -> str:
    """Put the cut before the first visible character, so that templates can still trim."""
    visible = content.lstrip()
    return content[: len(content) - len(visible)] + cut + visible if visible else content


def _pieces(text: str, cut: str) -> list[str]:
    """Split at cuts that begin a word, and give the blank before a cut to the piece that follows it."""
    pieces = [""]
    for part in text.split(cut):
        before = pieces[-1]
        if before.endswith(" "):
            pieces[-1] = before[:-1]
            pieces.append(" " + part)
        elif before and not before[-1].isspace():
            pieces.append(part)
        else:
            pieces[-1] += part
    return pieces
