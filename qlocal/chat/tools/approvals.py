"""What a user has said yes or no to. Lives as long as a conversation is open: a yes is never carried into another."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """The answers to a question for a yes."""

    ONCE = "once"
    CONVERSATION = "this tool in this conversation"
    REFUSED = "not now"
    NEVER = "never in this conversation"


class Approvals:
    """Remembers verdicts that hold for more than one call."""

    def __init__(self) -> None:
        self._allowed: set[str] = set()
        self._refused: set[str] = set()

    def known(self, tool: str) -> bool | None:
        """Return what was said of a tool, None where it must be asked for."""
        if tool in self._refused:
            return False
        return True if tool in self._allowed else None

    def note(self, tool: str, verdict: Verdict) -> bool:
        """Remember a verdict and return whether the call may be done."""
        if verdict is Verdict.CONVERSATION:
            self._allowed.add(tool)
        elif verdict is Verdict.NEVER:
            self._refused.add(tool)
        return verdict in (Verdict.ONCE, Verdict.CONVERSATION)

    def forget(self) -> None:
        """Ask anew: another conversation is open."""
        self._allowed.clear()
        self._refused.clear()
