"""The words of the status line."""

from __future__ import annotations

from qlocal.chat.events import Usage
from qlocal.chat.status_line import StatusLine


def test_the_share_of_right_guesses_stands_beside_the_speed() -> None:
    usage = Usage(9, 30, drafted_tokens=20, accepted_tokens=15)
    assert "42.5 tok/s, 75% of guesses right" in StatusLine("m", tokens_per_s=42.5, acceptance=usage.acceptance).text()
    assert Usage(9, 30, drafted_tokens=0, accepted_tokens=0).acceptance is None
    assert Usage(9, 30).acceptance is None
