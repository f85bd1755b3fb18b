import io

import pytest
from rich.console import Console

from quantize.report import display as display_module
from quantize.report.display import DoneUnit, LiveDisplay, PlainDisplay


def done(unit: str, num_done: int, count: int, seconds: float = 1.0) -> DoneUnit:
    losses = {"awq": {"model.layers.0.self_attn.q_proj": 0.25, "model.layers.0.self_attn.k_proj": 0.75}}
    return DoneUnit(unit, num_done, count, losses, seconds, 4_000_000)


def test_plain_lines_tell_layer_losses_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0])
    monkeypatch.setattr(display_module.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    with PlainDisplay(stream) as display:
        display.begin_unit("0")
        display.end_unit(done("0", 1, 3, seconds=2.0))
    assert stream.getvalue() == "layer 0 (1/3): awq loss 0.50000, 2.0 s, 2.0 M weights/s, 0:00:04 left\n"


def test_time_left_counts_what_an_earlier_run_has_done_and_units_worked_on_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([10.0, 70.0, 80.0])
    monkeypatch.setattr(display_module.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.begin_unit("6")
    display.begin_unit("7")
    display.end_unit(done("7", 7, 9, seconds=60.0))
    display.end_unit(done("6", 8, 9, seconds=60.0))
    first, second = stream.getvalue().splitlines()
    assert first.startswith("layer 7 (7/9)") and first.endswith("0:02:00 left")
    assert second.startswith("layer 6 (8/9)") and second.endswith("0:00:35 left")


def test_live_display_shows_the_linear_at_work_and_keeps_the_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveDisplay(console) as display:
        display.say("A note with [brackets].")
        display.begin_unit("0")
        display.linear_done("gptq", "model.layers.0.mlp.up_proj", 0.125)
        display._live.refresh()
        display.end_unit(done("0", 1, 2))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A note with [brackets]." in shown
    assert "gptq 0.mlp.up_proj loss 0.12500" in shown
    assert "layer 0 (1/2): awq loss 0.50000, 1.0 s" in shown
