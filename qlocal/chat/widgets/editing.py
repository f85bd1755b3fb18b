"""What every editor here does with keys that its own bindings know: Backspace, Delete, the arrows."""

from __future__ import annotations

from textual.events import Key
from textual.widget import Widget
from textual.widgets import Input


async def act_at_once(editor: Widget, event: Key) -> None:
    """Do what the editor's own bindings say of a key, where the key arrives.

    Textual lets a key travel through all the parents before a binding acts, while a letter is inserted where it
    arrives: of keys that come in one burst, as over a slow line, a letter would overtake the Backspace before it.
    """
    for binding in editor._bindings.key_to_bindings.get(event.key, ()):
        if not binding.priority and await editor.app.run_action(binding.action, editor):
            event.stop()
            event.prevent_default()
            return


class LineEditor(Input):
    """An editor of one line."""

    async def _on_key(self, event: Key) -> None:
        await act_at_once(self, event)
