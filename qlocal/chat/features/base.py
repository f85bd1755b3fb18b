"""The base of all features: a group of actions that belong together, and what they remember between two keys."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat.actions import Action
from qlocal.chat.desk import Desk
from qlocal.chat.link_state import LinkState


class Feature:
    """`ACTIONS` names the methods that users reach. A method returns at once and leaves slow work to `desk.start`.

    The other methods tell what happened; a feature overrides those it needs.
    """

    ACTIONS: ClassVar[tuple[Action, ...]] = ()

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def on_link(self, before: LinkState, state: LinkState) -> None:
        """The state of server and model changed."""

    def on_waiting(self) -> None:
        """What is sent after the answer that is being written changed."""

    def on_conversation(self) -> None:
        """Another conversation, or another branch of it, is shown."""
