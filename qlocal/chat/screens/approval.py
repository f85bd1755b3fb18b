"""The question for a yes before a tool is called: which tool, and all of its arguments, hidden characters visible."""

from __future__ import annotations

import json
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from qlocal.chat import words
from qlocal.chat.languages import t
from qlocal.chat.tools.approvals import Verdict
from qlocal.chat.tools.base import ToolCall, ToolError
from qlocal.clean import clean, clean_line


class ApprovalScreen(ModalScreen[Verdict]):
    """Returns the verdict. Nothing is chosen by Enter, which may be on its way from the editor: a letter is."""

    CSS_PATH = "approval.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "say('ONCE')", "Once", id="approval.once"),
        Binding("a", "say('CONVERSATION')", "In this conversation", id="approval.conversation"),
        Binding("n,escape", "say('REFUSED')", "No", id="approval.no"),
        Binding("x", "say('NEVER')", "Never", id="approval.never"),
    ]

    def __init__(self, call: ToolCall, where: str) -> None:
        """where: whose tool it is."""
        super().__init__()
        self._call, self._where = call, where

    def compose(self) -> ComposeResult:
        with Vertical(id="approval") as box:
            box.border_title = t(words.APPROVAL)
            yield Static(Content(words.wants_to_call(clean_line(self._call.name), clean_line(self._where))), id="tool")
            with VerticalScroll(id="arguments"):
                yield Static(Content(shown_arguments(self._call)))
            yield Static(t(words.APPROVAL_KEYS), id="choices", markup=False)

    def on_mount(self) -> None:
        self.query_one("#arguments").focus()

    def action_say(self, verdict: str) -> None:
        self.dismiss(Verdict[verdict])


def shown_arguments(call: ToolCall) -> str:
    """Return all arguments, each in lines of its own, with everything visible that is not plain to see."""
    try:
        values = call.values()
    except ToolError:
        return clean(_escaped(call.arguments))
    lines = []
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
        lines.append(f"{_escaped(name)}:\n  " + _escaped(text).replace("\n", "\n  "))
    return clean("\n".join(lines) or t("(no arguments)"))


def _escaped(text: str) -> str:
    """Return a text with characters that show nothing, or look like others, as their numbers."""
    return "".join(c if c == "\n" or c == " " or (c.isprintable() and not _is_blank(c)) else _number(c) for c in text)


def _is_blank(character: str) -> bool:
    """Whether a printable character is drawn as nothing: joiners, fillers, variation selectors."""
    return character in "\u115f\u1160\u3164\uffa0\u2800\u034f" or "\ufe00" <= character <= "\ufe0f"


def _number(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
