"""What `qlocal run` says beside the answer."""

from __future__ import annotations

from qlocal.commands.run import stats_line

OWN = {"cached_tokens": 5, "prefill_s": 0.25, "tokens_per_s": 40.0, "drafted_tokens": 20, "accepted_tokens": 15}


def test_stats_are_one_line_with_guesses_only_where_there_were_some() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 30, "qlocal": OWN}
    said = "prompt 9 tokens (5 not computed again) in 0.25 s; answer 30 tokens, 40.0 tokens/s"
    assert stats_line(usage) == f"{said}; 15 of 20 guessed tokens were right"
    assert stats_line({**usage, "qlocal": OWN | {"drafted_tokens": 0}}) == said
