"""Every screen, as it is kept in `screens/`: in all themes, at both sizes, in all languages.

After a change that is meant, `make snapshots` writes the files anew; the diff is what the change looks like.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.chat.scenes import SCENES
from tests.chat.snapshots import FOLDER, all_of, faint, part_of, text_of

MIN_CONTRAST = 4.5


@pytest.mark.parametrize("name", SCENES)
def test_a_screen_looks_as_it_did_and_can_be_read(name: str, tmp_path: Path) -> None:
    look(name, tmp_path, is_quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_a_screen_does_so_in_every_language(name: str, tmp_path: Path) -> None:
    look(name, tmp_path, is_quick=False)


def look(name: str, folder: Path, *, is_quick: bool) -> None:
    shots = all_of(name, folder, is_quick=is_quick)
    found = text_of(name, shots)
    kept = part_of((FOLDER / f"{name}.txt").read_text(encoding="utf-8"), found)
    diff = list(difflib.unified_diff(kept.splitlines(), found.splitlines(), "kept", "now", lineterm=""))
    assert not diff, "`make snapshots` keeps the new look, if it is meant:\n" + "\n".join(diff[:80])
    for of_language in shots.values():
        for shot in of_language:
            assert {cell_len("".join(cell.character for cell in row)) for row in shot.cells} == {shot.size[0]}
        assert list(faint(of_language, MIN_CONTRAST)) == []


def test_no_file_is_kept_of_a_screen_that_is_gone() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SCENES)
