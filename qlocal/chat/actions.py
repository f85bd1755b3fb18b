"""Everything a key can do, in one table: name of the action, its key, and the words for footer and help.

`binding_id` stays the same for ever: it is what a user's key map refers to.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True)
class Action:
    """One action of the chat screen. `is_shown` puts it into the footer."""

    name: str
    keys: str
    label: str
    help: str
    is_shown: bool = True

    @property
    def binding_id(self) -> str:
        return f"chat.{self.name.removeprefix('app.')}"

    def binding(self) -> Binding:
        # Priority: the prompt has the focus and would take some of these keys for editing.
        return Binding(
            self.keys, self.name, self.label, show=self.is_shown, priority=True, id=self.binding_id, tooltip=self.help
        )


ACTIONS = (
    Action("stop", "escape", "Stop", "Stop the answer; what was written stays", is_shown=False),
    Action("copy_or_stop", "ctrl+c", "Copy or stop", "Copy what is selected in the editor, else stop", is_shown=False),
    Action("regenerate", "ctrl+r", "Again", "Answer the last message anew; the old answer stays as a branch"),
    Action("previous_branch", "alt+left", "Branch before", "Show the answer before this one", is_shown=False),
    Action("next_branch", "alt+right", "Branch after", "Show the answer after this one", is_shown=False),
    Action("new_conversation", "ctrl+n", "New", "Begin a new conversation"),
    Action("open_conversation", "ctrl+o", "Open", "Open an earlier conversation"),
    Action("choose_model", "f2,ctrl+l", "Model", "Choose another model"),
    Action("copy_answer", "ctrl+y", "Copy", "Copy the last answer"),
    Action("scroll_up", "pageup", "Up", "Scroll back by a page", is_shown=False),
    Action("scroll_down", "pagedown", "Down", "Scroll forward by a page", is_shown=False),
    Action("go_to_end", "ctrl+end", "End", "Go to the end and follow it", is_shown=False),
    Action("app.quit", "ctrl+q", "Quit", "Quit; everything is saved"),
)
