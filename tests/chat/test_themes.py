"""The colours: readable in every theme, the terminal's own where it is asked to choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.color import Color
from textual.theme import Theme

from qlocal.chat.theme import ORDER, OWN, theme_after
from qlocal.chat.widgets.transcript import Transcript
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of

ANSWER = "# Head\n\n> quote\n\n`code` [link](x) $x$\n\n```py\nx = 1  # y\n```\n\nend."
MIN_CONTRAST = 4.5


def contrast(one: Color, other: Color) -> float:
    """The ratio of WCAG 2: of luminances, with 0.05 for the light that falls on every screen."""

    def luminance(color: Color) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", OWN, ids=lambda theme: theme.name)
def test_every_colour_can_be_read_on_every_background(theme: Theme) -> None:
    inks = (theme.primary, theme.secondary, theme.accent, theme.warning, theme.error, theme.success, theme.foreground)
    weak = [
        (ink, paper)
        for ink in inks
        for paper in (theme.background, theme.surface, theme.panel)
        if ink and paper and contrast(Color.parse(ink), Color.parse(paper)) < MIN_CONTRAST
    ]
    assert weak == []


def test_the_key_goes_through_all_themes_and_says_which(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("end.")
        await chat.until_idle()
        seen = []
        for _ in ORDER:
            seen.append(chat.app.theme)
            shown = chat.shown.split()
            await chat.pilot.press("f9")
            assert "Colours: " in chat.notice
            await chat.until_shown("end.")
            assert chat.shown.split() == shown
        assert tuple(seen) == ORDER and chat.app.theme == ORDER[0]

    run_chat(tmp_path, ScriptedLink([answer_of(ANSWER)]), use)


@pytest.mark.parametrize("theme", ["ansi-dark", "ansi-light"])
def test_the_terminals_own_colours_are_no_others(tmp_path: Path, theme: str) -> None:
    async def use(chat: Chat) -> None:
        chat.app.theme = theme
        await chat.say("go")
        await chat.until_shown("end.")
        await chat.until_idle()
        transcript = chat.app.chat.query_one(Transcript)
        lines = [transcript.render_line(y) for y in range(transcript.size.height)]
        styles = [segment.style for line in lines for segment in line if segment.style is not None]
        colours = {
            colour.type.name for style in styles for colour in (style.color, style.bgcolor) if colour is not None
        }
        assert colours <= {"DEFAULT", "STANDARD"} and "STANDARD" in colours

    run_chat(tmp_path, ScriptedLink([answer_of(ANSWER)]), use)


def test_an_unknown_theme_is_followed_by_the_first() -> None:
    assert theme_after("nord") == ORDER[0]
