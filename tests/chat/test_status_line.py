"""The words of the status line."""

from __future__ import annotations

from qlocal.chat.events import Usage
from qlocal.chat.status_line import StatusLine


def test_the_share_of_right_guesses_stands_beside_the_speed() -> None:
    usage = Usage(9, 30, drafted_tokens=20, accepted_tokens=15)
    assert "42.5 tok/s, 75% of guesses right" in StatusLine("m", tokens_per_s=42.5, acceptance=usage.acceptance).text()
    assert Usage(9, 30, drafted_tokens=0, accepted_tokens=0).acceptance is None
    assert Usage(9, 30).acceptance is None


def test_what_matters_less_is_left_out_where_there_is_no_room() -> None:
    price = "12 of 32,768 tokens"
    line = StatusLine("a-model-with-a-long-name", "ready", None, 42.5, 1000, 32_768, price=price, others=2)
    whole = line.text()
    assert line.text(len(whole)) == whole
    parts = ["2 of others in the queue", "42.5 tok/s", "context", "12 of 32,768 tokens"]
    for count in range(1, len(parts)):
        room = len(line.text(len(whole) - sum(len(part) for part in parts[:count])))
        shown = line.text(room)
        assert len(shown) <= room and all(part not in shown for part in parts[:count])
        assert "12 of 32,768 tokens" in shown, "what a message would cost is decided by"
    assert line.text(30) == "a-model-with-a-long-n… · ready"
    assert line.text(3) == "a-model-… · ready", "the widget cuts the rest"


def test_the_bar_of_a_load_stays_where_its_words_have_no_room() -> None:
    loading = "loading 2.62 GiB on cuda:0 and 3.62 GiB on cuda:1 for 32,768 tokens, layer split"
    line = StatusLine("qwen2.5-7b-instruct-awq", loading, 0.32)
    assert line.text(78) == "qwen2.5-7b-instruct-awq · loading 2.62 GiB on cuda:0 and 3.6… ━━━━╌╌╌╌╌╌╌╌ 32%"
    assert line.text(44) == "qwen2.5-7b-inst… · loading… ━━━━╌╌╌╌╌╌╌╌ 32%"
    assert f"{loading} ━━━━╌╌╌╌╌╌╌╌ 32%" in line.text()
