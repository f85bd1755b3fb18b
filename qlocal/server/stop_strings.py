"""Stop strings across token borders: what may be the beginning of one is held back until it is decided."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the first stop string. Joined output is the text before it, however it was cut up."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Take new text, return what may be shown; sets `stopped` when a stop string was found."""
        if self.stopped:
            return ""
        self._held += text
        # The string that is complete first wins, so that the result does not depend on how the text is cut up.
        if found := [(cut + len(stop), cut) for stop in self._stops if (cut := self._held.find(stop)) >= 0]:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """Return what was held back: the text ended, so no stop string can follow."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
