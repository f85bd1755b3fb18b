import io

from rich.console import Console

from quantize.report.display import LiveDisplay, PlainDisplay


def test_plain_lines_tell_layer_losses_speed_and_time_left() -> None:
    stream = io.StringIO()
    with PlainDisplay(stream) as display:
        display.begin_unit("0", 0, 3)
        display.linear_done("awq", "model.layers.0.self_attn.q_proj", 0.25)
        display.linear_done("awq", "model.layers.0.self_attn.k_proj", 0.75)
        display.end_unit(2.0, 4_000_000)
    assert stream.getvalue() == "layer 0 (1/3): awq loss 0.50000, 2.0 s, 2.0 M weights/s, 0:00:04 left\n"


def test_time_left_counts_what_an_earlier_run_has_done() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.begin_unit("7", 7, 9)
    display.end_unit(60.0, 1)
    assert "0:01:00 left" in stream.getvalue()


def test_live_display_shows_the_linear_at_work_and_keeps_the_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveDisplay(console) as display:
        display.say("A note with [brackets].")
        display.begin_unit("0", 0, 2)
        display.linear_done("gptq", "model.layers.0.mlp.up_proj", 0.125)
        display._live.refresh()
        display.end_unit(1.0, 1_000_000)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A note with [brackets]." in shown
    assert "gptq 0.mlp.up_proj loss 0.12500" in shown
    assert "layer 0 (1/2): gptq loss 0.12500, 1.0 s" in shown
