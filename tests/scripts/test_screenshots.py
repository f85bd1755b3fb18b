"""The pictures in docs/: there, small, shown somewhere, and made by `make screenshots` alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from scripts.screenshots import MAX_BYTES, PICTURES, take

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_every_picture_is_there_small_and_shown() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *DOCS.glob("*.md")])
    assert {path.stem for path in DOCS.glob("chat*.svg")} == {picture.name for picture in PICTURES}
    for picture in PICTURES:
        path = DOCS / f"{picture.name}.svg"
        assert path.stat().st_size <= MAX_BYTES
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert f"({path.name})" in pages or f"(docs/{path.name})" in pages, f"{path.name} is shown nowhere"


def test_a_picture_comes_out_the_same_every_time() -> None:
    picture = next(picture for picture in PICTURES if picture.name == "chat-replay")
    assert take(picture) == take(picture)
