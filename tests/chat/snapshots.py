"""What a screen looks like, as text that can be read in a diff: its characters, and below them its styles.

A style is a letter; a line of runs says how many cells each letter holds. The legend gives a letter's colours in every
theme. `python -m tests.chat.snapshots` (`make snapshots`) writes all files of `tests/chat/screens/` anew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import ascii_letters

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.geometry import Region

from qlocal.chat.preferences import Preferences
from qlocal.chat.theme import NAMES
from tests.chat.driving import Chat, run_chat
from tests.chat.scenes import SCENES, link_for, scripted_world, settle, write_history
from tests.chat.talks import ARABIC, CHINESE, ENGLISH, TALKS, Talk

FOLDER = Path(__file__).parent / "screens"
SMALL, LARGE = (80, 24), (160, 50)
THEMES = ("dark", "light", "contrast", "terminal")
COVERED = "covered"
ORNAMENTS = {*map(chr, range(0x2500, 0x25A0)), "🔎"}
"""Box drawings, blocks and pictures: nobody has to read them."""


@dataclass(frozen=True)
class Cell:
    """A character, empty behind one of two cells, and its style in every theme."""

    character: str
    styles: tuple[str, ...]


Grid = list[list[Cell]]


@dataclass(frozen=True)
class Shot:
    """A screen at one size. front: what is to be read now; behind a dialog all is dimmed on purpose."""

    size: tuple[int, int]
    cells: Grid
    front: tuple[Region, ...]


def languages(name: str) -> Iterator[tuple[str, Talk]]:
    """The talks in which a scene is looked at."""
    return ((language, talk) for language, talk in TALKS.items() if talk is not ARABIC or SCENES[name].is_said)


def taken(name: str, talk: Talk, folder: Path) -> list[Shot]:
    """Reach a scene and look at it at both sizes, in all themes."""
    shots: list[Shot] = []
    folder.mkdir(exist_ok=True)

    async def use(chat: Chat) -> None:
        await SCENES[name].reach(chat, talk)
        await settle(chat)
        for size in (SMALL, LARGE):
            if chat.app.size != size:
                await chat.pilot.resize_terminal(*size)
            # Of the large screen the characters alone are kept.
            cells = await _looked_at(chat, THEMES if size == SMALL else THEMES[:1])
            shots.append(Shot(size, cells, tuple(part.region for part in chat.app.screen.children)))

    with chdir(folder), scripted_world() as clock:
        write_history(folder / "history.sqlite3", talk, clock)
        link = link_for(talk, folder)
        run_chat(folder, link, use, size=SMALL, preferences=Preferences(language=talk.language))
    return shots


async def _looked_at(chat: Chat, themes: Sequence[str]) -> Grid:
    grids: list[list[list[tuple[str, str]]]] = []
    for theme in themes:
        if chat.app.theme != NAMES[theme]:
            chat.app.theme = NAMES[theme]
        await chat.pilot.pause()
        grids.append(_drawn(chat))
    return [[_cell(cells) for cells in zip(*rows, strict=True)] for rows in zip(*grids, strict=True)]


def _cell(drawn: tuple[tuple[str, str], ...]) -> Cell:
    """Join what themes make of a cell. What a dialog dims in other themes is covered where no colours can be mixed."""
    character = drawn[0][0]
    styles = [COVERED if one != character else style for one, style in drawn]
    assert all(one in (character, "", " ") for one, _ in drawn), f"a theme changes colours alone: {drawn}"
    return Cell(character, tuple(styles))


def _drawn(chat: Chat) -> list[list[tuple[str, str]]]:
    """Return the cells of the screen that the terminal would show now, with the screens behind it."""
    app = chat.app
    update = app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)
    segments = [segment for segment in app.console.render(update) if not segment.control and segment.text]
    lines = list(Segment.split_lines(segments))
    return [_cells(line) for line in lines]


def _cells(line: list[Segment]) -> list[tuple[str, str]]:
    """Return a line by cells; what takes none, as an accent does, belongs to the character before."""
    cells: list[tuple[str, str]] = []
    for segment in line:
        style = named(segment.style or Style.null())
        for character in segment.text:
            width = cell_len(character)
            if width == 0 and cells:
                cells[-1] = (cells[-1][0] + character, cells[-1][1])
            else:
                cells += [(character, style)] + [("", style)] * (width - 1)
    return cells


def named(style: Style) -> str:
    """Return a style in words, without links and other things that nobody sees."""
    plain = Style(
        color=style.color, bgcolor=style.bgcolor, bold=style.bold or None, dim=style.dim or None,
        italic=style.italic or None, underline=style.underline or None, strike=style.strike or None,
        reverse=style.reverse or None,
    )  # fmt: skip
    return str(plain)


def text_of(name: str, shots: dict[str, list[Shot]]) -> str:
    """Return the file of a scene. Styles stand below the small screen alone: the large one has the same widgets."""
    letters: dict[tuple[str, ...], str] = {}
    parts: list[str] = []
    for language, of_language in shots.items():
        for shot in of_language:
            parts.append(f"=== {language}, {shot.size[0]}×{shot.size[1]}")
            parts += ["".join(cell.character for cell in row).rstrip() for row in shot.cells]
            if shot.size == SMALL:
                parts += ["--- styles", *_runs(shot.cells, letters)]
    legend = [
        f"{letter}  " + " | ".join(f"{theme} {style}" for theme, style in zip(THEMES, styles, strict=True))
        for styles, letter in letters.items()
    ]
    return "\n".join([f"# {name}", *parts, "=== legend", *legend]) + "\n"


def _runs(cells: Grid, letters: dict[tuple[str, ...], str]) -> Iterator[str]:
    lines = []
    for row in cells:
        runs = []
        for styles, group in groupby(row, key=lambda cell: cell.styles):
            letter = letters.setdefault(styles, _letter(len(letters)))
            runs.append(f"{letter}{len(list(group))}")
        lines.append(" ".join(runs))
    for runs_of_line, numbered in groupby(enumerate(lines, 1), key=lambda line: line[1]):
        numbers = [number for number, _ in numbered]
        yield (f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])) + f": {runs_of_line}"


def _letter(idx: int) -> str:
    round_, at = divmod(idx, len(ascii_letters))
    return ascii_letters[at] + "'" * round_


def faint(shots: list[Shot], least: float) -> Iterator[str]:
    """Yield what cannot be read for want of contrast: own themes alone, since a terminal's colours are its owner's."""
    seen: set[str] = set()
    for shot in shots:
        if shot.size != SMALL:
            continue
        for y, row in enumerate(shot.cells):
            for x, cell in enumerate(row):
                is_text = bool(cell.character.strip()) and cell.character[0] not in ORNAMENTS
                if not is_text or not any(region.contains(x, y) for region in shot.front):
                    continue
                for theme, style in zip(THEMES[:3], cell.styles[:3], strict=True):
                    ratio = contrast_of(style)
                    if ratio is not None and ratio < least and f"{theme}: {style}" not in seen:
                        seen.add(f"{theme}: {style}")
                        yield f"{theme}: {style} ({ratio:.1f}) at {''.join(one.character for one in row).strip()!r}"


def contrast_of(text: str) -> float | None:
    """Return the contrast of a style in words, None where a colour is the terminal's own."""
    style = Style.parse(text)
    if style.color is None or style.bgcolor is None or style.color.triplet is None or style.bgcolor.triplet is None:
        return None
    return contrast(Color(*style.color.triplet), Color(*style.bgcolor.triplet))


def contrast(one: Color, other: Color) -> float:
    """The ratio of WCAG 2: of luminances, with 0.05 for the light that falls on every screen."""

    def luminance(color: Color) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def all_of(name: str, folder: Path, *, is_quick: bool = False) -> dict[str, list[Shot]]:
    """Return a scene in all its languages; is_quick: in those alone in which it is most worth looking at."""
    return {
        language: taken(name, talk, folder / language)
        for language, talk in languages(name)
        if not is_quick or talk is ENGLISH or (SCENES[name].is_said and (talk is CHINESE or name == "conversation"))
    }


def part_of(kept: str, found: str) -> str:
    """Return of a kept file what a look in fewer languages finds; the first languages fill the legend first."""
    parts = {part.partition("\n")[0]: part for part in found.split("=== ")}
    same = [part for part in kept.split("=== ") if (head := part.partition("\n")[0]) in parts and head != "legend"]
    legend = kept.partition("=== legend\n")[2].splitlines(keepends=True)
    count = len(parts["legend"].splitlines()) - 1
    return "=== ".join([*same, "legend\n" + "".join(legend[:count])])


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        if old.stem not in SCENES:
            old.unlink()
    for name in names or SCENES:
        with tempfile.TemporaryDirectory() as folder:
            text = text_of(name, all_of(name, Path(folder)))
        path = FOLDER / f"{name}.txt"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(Path.cwd())} written")


if __name__ == "__main__":
    main(sys.argv[1:])
