"""The text of PDF and .docx files of strangers, and how much of it a reader of the document would not see.

Nothing is left out for being unseen: what is sent to a model can be looked at, and is told of. Covered text, and text
outside the page, is not told apart.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import math
import pkgutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from encodings.aliases import aliases
from io import BytesIO
from typing import Any, Protocol

from qlocal.guard.errors import JobError

HIDDEN, WHITE, TINY, COMMENTS = "hidden", "white", "tiny", "comments"
MAX_TEXT_CHARS = 4 << 20
MAX_UNPACKED_BYTES = 128 << 20
MAX_PARTS = 10_000
LEAST_POINTS = 2.0
LEAST_WHITE = 0.95
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_NOT_SHOWN = {f"{_W}del", f"{_W}moveFrom", f"{_W}instrText", f"{_W}rPr", f"{_W}pPr", f"{_MC}Fallback"}
_REFERENCES = {f"{_W}{kind}Reference": kind for kind in ("footnote", "endnote")}
_PARTS = ("STYLES", "COMMENTS", "HEADER", "FOOTER", "FOOTNOTES", "ENDNOTES")
_SPACES = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def import_reader(kind: str) -> None:
    """Import all that reading such a document may take, while files may still be opened: the libraries import some of
    themselves, and of Python's encodings, only when a document needs it."""
    package = importlib.import_module(_LIBRARIES[kind])
    names = {module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    for name in sorted(names | {"lxml.etree"} if kind == "docx" else names):
        with contextlib.suppress(ImportError):  # of what is optional there
            importlib.import_module(name)
    for encoding in set(aliases.values()):
        with contextlib.suppress(LookupError):  # of another system
            codecs.lookup(encoding)


class _Unseen:
    """Counts passages that are not seen; what follows one of its kind at once is the same passage."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._last: str | None = None

    def passage(self, kind: str | None) -> None:
        """Note the next piece of text; None for one that is seen."""
        if kind is not None and kind != self._last:
            self.counts[kind] += 1
        self._last = kind


def read(kind: str, data: bytes) -> dict[str, Any]:
    """Return `text` and, by kind, how many passages are `unseen`. JobError for what is no such document."""
    unseen = _Unseen()
    try:
        text = "\n\n".join(_limited(_READERS[kind](data, unseen)))
    except (JobError, MemoryError):
        raise
    except RecursionError:
        raise JobError("document", "is nested too deeply") from None
    except Exception as error:  # a damaged file makes the libraries raise nearly anything
        raise JobError("document", f"is no {_NAMES[kind]} that can be read: {error}") from error
    return {"text": text, "unseen": dict(unseen.counts)}


class _Reader(Protocol):
    def __call__(self, data: bytes, unseen: _Unseen) -> Iterator[str]: ...


def _limited(parts: Iterator[str]) -> Iterator[str]:
    num_chars = 0
    for part in parts:
        num_chars += len(part)
        if num_chars > MAX_TEXT_CHARS:
            raise JobError("document", f"has more than {MAX_TEXT_CHARS:,} characters of text, which is the limit")
        if part:
            yield part


def _pdf(data: bytes, unseen: _Unseen) -> Iterator[str]:
    import pypdf

    comments = []
    with pypdf.PdfReader(BytesIO(data)) as reader:
        for page in reader.pages:
            yield page.extract_text(visitor_operand_before=_Painting(unseen).before)
            comments += list(_annotations(page))
    yield _comments(comments, unseen)


def _annotations(page: Any) -> Iterator[str]:
    """Return what readers have noted on a page."""
    found = page.get("/Annots")
    for one in () if found is None else found.get_object():
        annotation = one.get_object()
        if annotation.get("/Subtype") not in ("/Link", "/Widget", "/Popup") and annotation.get("/Contents"):
            yield str(annotation["/Contents"])


class _Painting:
    """How a page paints its text: colour, rendering mode and size, as its operators change them."""

    def __init__(self, unseen: _Unseen) -> None:
        self._unseen = unseen
        self._is_white, self._mode, self._points = False, 0, 12.0
        self._stack: list[tuple[bool, int, float]] = []

    def before(self, operator: bytes, operands: Sequence[Any], cm: Sequence[float], tm: Sequence[float]) -> None:
        match operator:
            case b"q":
                self._stack.append((self._is_white, self._mode, self._points))
            case b"Q" if self._stack:
                self._is_white, self._mode, self._points = self._stack.pop()
            case b"g" | b"rg" | b"k" | b"sc" | b"scn":
                self._is_white = _is_white([float(one) for one in operands if isinstance(one, int | float)])
            case b"cs":
                self._is_white = False
            case b"Tr" if operands and isinstance(operands[0], int):
                self._mode = int(operands[0])
            case b"Tf" if len(operands) > 1 and isinstance(operands[1], int | float):
                self._points = abs(float(operands[1]))
            case b"Tj" | b"TJ" | b"'" | b'"' if operands and _has_text(operands[-1]):
                scale = math.sqrt(abs((tm[0] * tm[3] - tm[1] * tm[2]) * (cm[0] * cm[3] - cm[1] * cm[2])))
                is_tiny = self._points * scale < LEAST_POINTS
                kind = HIDDEN if self._mode in (3, 7) else WHITE if self._is_white else TINY if is_tiny else None
                self._unseen.passage(kind)


def _has_text(operand: Any) -> bool:
    parts = operand if isinstance(operand, list) else [operand]
    return any(isinstance(one, str | bytes) and one.strip() for one in parts)


def _is_white(numbers: Sequence[float]) -> bool:
    """Whether these are white in grey, in RGB, or without any ink in CMYK."""
    if len(numbers) == 4:
        return max(numbers) <= 1 - LEAST_WHITE
    return bool(numbers) and min(numbers) >= LEAST_WHITE


def _docx(data: bytes, unseen: _Unseen) -> Iterator[str]:
    import docx

    _check_parts(data)
    document = docx.Document(BytesIO(data))
    beside = {kind: _related(document, kind) for kind in _PARTS}
    for tree in (document.element, *(tree for trees in beside.values() for tree in trees)):
        if tree.getroottree().docinfo.doctype:
            raise JobError("document", "defines entities of its own, which no word processor writes")
    looks = _Looks(beside["STYLES"])
    yield _margins("Page header", beside["HEADER"], looks, unseen)
    yield from _blocks(document.element.body, looks, unseen)
    yield _margins("Page footer", beside["FOOTER"], looks, unseen)
    for kind in ("footnote", "endnote"):
        yield _notes(kind, beside[f"{kind.upper()}S"], looks, unseen)
    noted = [comment for tree in beside["COMMENTS"] for comment in tree]
    yield _comments([_on_one_line(list(_blocks(one, looks, _Unseen()))) for one in noted], unseen)


def _related(document: Any, kind: str) -> list[Any]:
    """Return the XML of the parts of a kind beside the text. Where there is none, the library would take its own."""
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.oxml.parser import parse_xml

    relations = document.part.rels.values()
    wanted = getattr(RELATIONSHIP_TYPE, kind)
    parts = [one.target_part for one in relations if one.reltype == wanted and not one.is_external]
    return [part.element if hasattr(part, "element") else parse_xml(part.blob) for part in parts]


def _margins(title: str, trees: Sequence[Any], looks: _Looks, unseen: _Unseen) -> str:
    """Return what stands at the top or bottom of pages: once, where pages of several kinds have the same there."""
    texts = ("\n".join(part for part in _blocks(tree, looks, unseen) if part.strip()) for tree in trees)
    found = [text for text in dict.fromkeys(texts) if text]
    return f"{title}:\n" + "\n\n".join(found) if found else ""


def _notes(kind: str, trees: Sequence[Any], looks: _Looks, unseen: _Unseen) -> str:
    """Return the notes that the text has references to, as Markdown writes them."""
    notes = [note for tree in trees for note in tree.iter(f"{_W}{kind}") if note.get(f"{_W}type", "normal") == "normal"]
    texts = [(_reference(note, kind), _on_one_line(list(_blocks(note, looks, unseen)))) for note in notes]
    return "\n".join(f"{reference}: {text.strip()}" for reference, text in texts if text.strip())


def _reference(node: Any, kind: str) -> str:
    prefix = "e" if kind == "endnote" else ""
    return f"[^{prefix}{node.get(f'{_W}id', '?')}]"


def _check_parts(data: bytes) -> None:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        parts = archive.infolist()
    unpacked = sum(part.file_size for part in parts)
    if unpacked > MAX_UNPACKED_BYTES or len(parts) > MAX_PARTS:
        raise JobError(
            "document",
            f"unpacks to {len(parts):,} parts with {unpacked / 2**20:,.0f} MiB, "
            f"at most {MAX_PARTS:,} parts with {MAX_UNPACKED_BYTES >> 20} MiB are read",
        )


def _blocks(element: Any, looks: _Looks, unseen: _Unseen) -> Iterator[str]:
    """Yield the paragraphs of an element, and its tables as those of Markdown."""
    for child in element:
        if child.tag == f"{_W}p":
            yield _paragraph(child, looks, unseen)
        elif child.tag == f"{_W}tbl":
            rows = [
                [list(_blocks(cell, looks, unseen)) for cell in _nearest(row, "tc")] for row in _nearest(child, "tr")
            ]
            yield "\n".join("| " + " | ".join(_on_one_line(cell) for cell in row) + " |" for row in rows)
        elif child.tag not in _NOT_SHOWN:
            yield from _blocks(child, looks, unseen)


def _nearest(element: Any, kind: str) -> Iterator[Any]:
    """Yield the rows or cells of a table, and not those of a table in it."""
    for child in element:
        if child.tag == f"{_W}{kind}":
            yield child
        elif child.tag != f"{_W}tbl":
            yield from _nearest(child, kind)


def _on_one_line(parts: Sequence[str]) -> str:
    return " ".join(part.replace("\n", " ") for part in parts if part)


def _paragraph(paragraph: Any, looks: _Looks, unseen: _Unseen) -> str:
    text = []
    for node in _shown(paragraph):
        if node.tag == f"{_W}p":  # of a text box
            text.append("\n")
        elif node.tag == f"{_W}t":
            text.append(node.text or "")
            if text[-1].strip():
                unseen.passage(looks.unseen(node))
        elif node.tag in _REFERENCES:
            text.append(_reference(node, _REFERENCES[node.tag]))
        else:
            text.append(_SPACES.get(node.tag, ""))
    return "".join(text)


def _shown(element: Any) -> Iterator[Any]:
    for child in element:
        if child.tag not in _NOT_SHOWN:
            yield child
            yield from _shown(child)


class _Looks:
    """How the runs of a Word document look: by themselves, by their style and by that of their paragraph."""

    def __init__(self, styles: Sequence[Any]) -> None:
        found = (style for tree in styles for style in tree.iter(f"{_W}style"))
        self._styles = {style.get(f"{_W}styleId"): style for style in found}

    def unseen(self, text: Any) -> str | None:
        """Return why the text of a run is not seen, None where it is."""
        run = next(text.iterancestors(f"{_W}r"), None)
        if run is None:
            return None
        paragraph = next(run.iterancestors(f"{_W}p"))
        properties = [*self._properties(run, "r"), *self._properties(paragraph, "p")]
        if _value(properties, "vanish", "1") not in (None, "0", "false", "off"):
            return HIDDEN
        if _is_white(_colour(_value(properties, "color"))) and not _is_on_colour(run):
            return WHITE
        half_points = _value(properties, "sz") or "24"
        return TINY if half_points.isdecimal() and int(half_points) < 2 * LEAST_POINTS else None

    def _properties(self, element: Any, kind: str) -> Iterator[Any]:
        """Yield what says how text looks, the nearest first: of a run or paragraph itself, then of its styles."""
        own = element.find(f"{_W}{kind}Pr")
        if own is None:
            return
        if kind == "r":
            yield own
        style, seen = own.find(f"{_W}{kind}Style"), set()
        while style is not None and (name := style.get(f"{_W}val")) in self._styles and name not in seen:
            seen.add(name)
            found = self._styles[name]
            if (looks := found.find(f"{_W}rPr")) is not None:
                yield looks
            style = found.find(f"{_W}basedOn")


def _value(properties: Sequence[Any], name: str, default: str | None = None) -> str | None:
    for one in properties:
        if (found := one.find(f"{_W}{name}")) is not None:
            value = found.get(f"{_W}val", default)
            return None if value is None else str(value)
    return None


def _colour(digits: str | None) -> list[float]:
    """Return the parts of a colour as it is written, none for `auto`."""
    try:
        return [byte / 255 for byte in bytes.fromhex(digits or "")]
    except ValueError:
        return []


def _is_on_colour(run: Any) -> bool:
    """Whether the ground of a run has a colour: its own, its paragraph's or its table cell's."""
    if run.find(f"{_W}rPr/{_W}highlight") is not None:
        return True
    grounds = [run.find(f"{_W}rPr/{_W}shd")]
    for outer in run.iterancestors(f"{_W}p", f"{_W}tc"):
        grounds.append(outer.find(f"{outer.tag}Pr/{_W}shd"))
    fills = [_colour(one.get(f"{_W}fill")) for one in grounds if one is not None]
    return any(fill and not _is_white(fill) for fill in fills)


def _comments(texts: Sequence[str], unseen: _Unseen) -> str:
    if not texts:
        return ""
    unseen.counts[COMMENTS] += len(texts)
    return "Comments:\n" + "\n".join(f"- {text.strip()}" for text in texts)


_READERS: dict[str, _Reader] = {"pdf": _pdf, "docx": _docx}
_LIBRARIES = {"pdf": "pypdf", "docx": "docx"}
_NAMES = {"pdf": "PDF", "docx": ".docx"}
