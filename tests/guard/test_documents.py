"""Documents of strangers: their text as it is, what is not seen of it counted, and none that can do harm."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

import pytest

from qlocal.errors import FormatError, QLocalError
from qlocal.guard import documents, frames
from qlocal.guard.client import Guard
from qlocal.guard.errors import JobError
from tests.guard.made_documents import W, docx_of, paragraph, pdf_of

pytest.importorskip("docx")
pytest.importorskip("pypdf")
SLOW = pytest.mark.slow
MIB = 1 << 20
WHITE, HIDDEN, TINY = '<w:color w:val="FFFFFF"/>', "<w:vanish/>", '<w:sz w:val="2"/>'
DARK_CELL = f'<w:tbl><w:tr><w:tc><w:tcPr><w:shd w:fill="000000"/></w:tcPr>{paragraph("a", WHITE)}</w:tc></w:tr></w:tbl>'
TEXT = b"BT /F1 12 Tf 50 700 Td %s ET"


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    with Guard() as running:
        yield running


@pytest.mark.parametrize(
    ("operators", "unseen"),
    [
        (b"(a) Tj (b) Tj", {}),
        (b"1 g (a) Tj (b) Tj 0 g (c) Tj 1 1 1 rg (d) Tj", {"white": 2}),
        (b"0 0 0 0 k [(a) 5 (b)] TJ", {"white": 1}),
        (b"3 Tr (a) Tj 0 Tr (b) Tj", {"hidden": 1}),
        (b"/F1 0.5 Tf (a) Tj", {"tiny": 1}),
        (b"0.01 0 0 0.01 50 700 Tm (a) Tj", {"tiny": 1}),
        (b"/F1 1 Tf 12 0 0 12 50 700 Tm (a) Tj", {}),
        (b"ET q 1 g BT /F1 12 Tf (a) Tj ET Q BT /F1 12 Tf (b) Tj", {"white": 1}),
        (b"1 g ( ) Tj 0.2 g (a) Tj", {}),
        (b"1 g /DeviceRGB cs (a) Tj", {}),
        (b"Q 1 1 1 sc (a) Tj", {"white": 1}),
        (b"/F1 (x) Tf (y) Tr /P scn (a) Tj", {}),
    ],
)
def test_text_of_a_pdf_that_is_not_seen_is_sent_and_counted(
    guard: Guard, operators: bytes, unseen: dict[str, int]
) -> None:
    read = guard.read_document("pdf", pdf_of(TEXT % operators), "a.pdf")
    assert read["unseen"] == unseen and "a" in read["text"]


def test_notes_on_a_pdfs_pages_are_sent_as_comments(guard: Guard) -> None:
    notes = b"/Annots [<< /Subtype /Text /Contents (check this) >> << /Subtype /Link /Contents (no) >>]"
    read = guard.read_document("pdf", pdf_of(TEXT % b"(a) Tj", page=notes), "a.pdf")
    assert read["text"].endswith("Comments:\n- check this") and read["unseen"] == {"comments": 1}


@pytest.mark.parametrize(
    ("body", "unseen"),
    [
        (paragraph("a"), {}),
        (paragraph("a", WHITE), {"white": 1}),
        (paragraph("a", WHITE + '<w:shd w:fill="1F3864"/>'), {}),
        (paragraph("a", WHITE + '<w:highlight w:val="yellow"/>'), {}),
        (paragraph("a", '<w:color w:val="no colour"/>'), {}),
        (paragraph("a", '<w:color w:val="auto"/>'), {}),
        (paragraph("a", HIDDEN), {"hidden": 1}),
        (paragraph("a", '<w:vanish w:val="0"/>'), {}),
        (paragraph("a", TINY), {"tiny": 1}),
        (paragraph("a", WHITE) + paragraph("b") + paragraph("c", WHITE), {"white": 2}),
        (DARK_CELL, {}),
        (f"<w:sdt><w:sdtContent>{paragraph('a', HIDDEN)}</w:sdtContent></w:sdt>", {"hidden": 1}),
    ],
)
def test_text_of_a_word_document_that_is_not_seen_is_sent_and_counted(
    guard: Guard, body: str, unseen: dict[str, int]
) -> None:
    read = guard.read_document("docx", docx_of(body), "a.docx")
    assert read["unseen"] == unseen and "a" in read["text"]


def test_a_style_hides_text_as_well_as_the_text_itself(guard: Guard) -> None:
    """Styles are found by name, through those they are based on; one that is based on itself ends."""
    styles = {
        "pale": f"<w:rPr>{WHITE}</w:rPr>",
        "paler": '<w:basedOn w:val="pale"/>',
        "loop": f'<w:basedOn w:val="loop"/><w:rPr>{TINY}</w:rPr>',
        "lost": '<w:basedOn w:val="nowhere"/>',
    }
    written = "".join(f'<w:style w:styleId="{name}">{rest}</w:style>' for name, rest in styles.items())

    def unseen(body: str) -> object:
        return guard.read_document("docx", docx_of(body, styles=written), "a.docx")["unseen"]

    assert unseen(paragraph("a", '<w:rStyle w:val="paler"/>')) == {"white": 1}
    assert unseen('<w:p><w:pPr><w:pStyle w:val="paler"/></w:pPr><w:r><w:t>a</w:t></w:r></w:p>') == {"white": 1}
    assert unseen(paragraph("a", '<w:rStyle w:val="loop"/>')) == {"tiny": 1}
    assert unseen(paragraph("a", '<w:rStyle w:val="lost"/>')) == {}
    assert unseen(paragraph("a", '<w:rStyle w:val="paler"/><w:color w:val="000000"/>')) == {}, "what is nearest counts"


def test_a_table_in_a_table_is_read_once(guard: Guard) -> None:
    inner = f"<w:tbl><w:tr><w:tc>{paragraph('in')}</w:tc><w:tc>{paragraph('side')}</w:tc></w:tr></w:tbl>"
    row = f"<w:sdt><w:sdtContent><w:tr><w:tc>{paragraph('a')}{inner}</w:tc><w:tc>{paragraph('b')}</w:tc></w:tr>"
    body = f"<w:tbl>{row}</w:sdtContent></w:sdt></w:tbl>"
    assert guard.read_document("docx", docx_of(body), "a.docx")["text"] == "| a | in | side | | b |"


def test_text_boxes_tabs_and_line_ends_are_read(guard: Guard) -> None:
    box = f"<w:txbxContent>{paragraph('in a box')}</w:txbxContent>"
    body = f"<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r><w:r><w:pict>{box}</w:pict></w:r></w:p>"
    body += "<w:p><w:t>bare</w:t></w:p>"
    assert guard.read_document("docx", docx_of(body), "a.docx")["text"] == "a\tb\nc\nin a box\n\nbare"


def test_what_was_inserted_is_read_and_what_was_deleted_is_not(guard: Guard) -> None:
    runs = "<w:r><w:t>one </w:t></w:r><w:ins><w:r><w:t>two </w:t></w:r></w:ins>"
    runs += "<w:del><w:r><w:delText>three</w:delText></w:r></w:del>"
    body = f"<w:p>{runs}<w:hyperlink><w:r><w:t>four</w:t></w:r></w:hyperlink></w:p>"
    comments = f"<w:comment>{paragraph('look here')}</w:comment>"
    read = guard.read_document("docx", docx_of(body, comments=comments), "a.docx")
    assert read == {"text": "one two four\n\nComments:\n- look here", "unseen": {"comments": 1}}


def test_what_stands_at_the_margins_and_in_notes_is_read(guard: Guard) -> None:
    """Headers of several kinds of pages once where they are the same; the lines that Word draws over notes are none."""
    line = '<w:footnote w:id="-1" w:type="separator"><w:p/></w:footnote>'
    note = f'<w:footnote w:id="1">{paragraph("see below")}{paragraph("and hidden", HIDDEN)}</w:footnote>'
    end = f'<w:endnote w:id="1">{paragraph("the end")}</w:endnote>'
    runs = (
        '<w:r><w:t>one</w:t></w:r><w:r><w:footnoteReference w:id="1"/></w:r><w:r><w:endnoteReference w:id="1"/></w:r>'
    )
    margins = [("header", paragraph("Report")), ("header", paragraph("Report")), ("footer", paragraph("Secret", WHITE))]
    data = docx_of(f"<w:p>{runs}</w:p>", notes={"footnotes": line + note, "endnotes": end}, margins=margins)
    read = guard.read_document("docx", data, "a.docx")
    assert read["text"].split("\n\n") == [
        "Page header:\nReport",
        "one[^1][^e1]",
        "Page footer:\nSecret",
        "[^1]: see below and hidden",
        "[^e1]: the end",
    ]
    assert read["unseen"] == {"white": 1, "hidden": 1}


def test_entities_in_a_note_are_refused_as_in_the_text(guard: Guard) -> None:
    with pytest.raises(QLocalError, match="entities"):
        notes = FILE.encode() + b'<w:footnotes xmlns:w="%s"/>' % W.encode()
        guard.read_document(
            "docx", docx_of("", notes={"footnotes": "x"}, parts={"word/footnotes.xml": notes}), "a.docx"
        )


LAUGHS = "<!DOCTYPE x [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {chr(97 + n)} '{f'&{chr(96 + n)};' * 20}'>" for n in range(1, 12)
)
FILE = "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>"
DEEP = 100_000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            lambda: docx_of(paragraph("a"), parts={"word/media/x": bytes(129 * MIB)}),
            "at most 10,000 parts with 128 MiB",
        ),
        (lambda: docx_of(paragraph("a"), parts={f"x{n}": b"" for n in range(10_001)}), "at most 10,000 parts"),
        (lambda: docx_of(paragraph("&l;"), before=LAUGHS + "]>"), "no .docx that can be read"),
        (lambda: docx_of(f'<w:p w:x="&l;"/>{paragraph("a")}', before=LAUGHS + "]>"), "no .docx that can be read"),
        (lambda: docx_of(paragraph("&a;"), before=FILE), "entities"),
        (lambda: docx_of("<w:sdt>" * DEEP + "</w:sdt>" * DEEP), ""),
        (lambda: docx_of(paragraph("a" * (5 * MIB))), "4,194,304 characters"),
        (lambda: docx_of(paragraph("a"))[:-40], "no .docx that can be read"),
    ],
    ids=["unpacks", "parts", "laughs", "laughs in attributes", "file", "deep", "long", "cut"],
)
def test_a_hostile_word_document_is_refused_in_a_sentence(guard: Guard, data: Callable[[], bytes], said: str) -> None:
    with pytest.raises(FormatError) as caught:
        guard.read_document("docx", data(), "mail/a.docx")
    sentence = str(caught.value)
    assert sentence.startswith("mail/a.docx ") and said in sentence and "root:" not in sentence
    assert guard.read_document("docx", docx_of(paragraph("next")), "b.docx")["text"] == "next"


FORM = b"<< /Type /XObject /Subtype /Form /BBox [0 0 1 1] /Resources << /XObject << /X1 5 0 R >> >> /Length 6 >>"


@pytest.mark.parametrize(
    "data",
    [
        lambda: pdf_of(zlib.compress(bytes(1 << 27)), head=b"/Filter /FlateDecode"),
        lambda: pdf_of(zlib.compress(zlib.compress(bytes(1 << 27))), head=b"/Filter [/FlateDecode /FlateDecode]"),
        lambda: pdf_of(b"[" * DEEP + b"]" * DEEP),
        lambda: pdf_of(b"<</a" * DEEP + b">>" * DEEP),
        lambda: pdf_of(TEXT % b"(a) Tj").replace(b"/Kids [3 0 R]", b"/Kids [2 0 R]"),
        lambda: pdf_of(TEXT % b"(a) Tj").replace(b"/Parent 2 0 R", b"/Parent 3 0 R"),
        lambda: pdf_of(b"/X1 Do", more=(FORM + b"\nstream\n/X1 Do\nendstream",)),
        lambda: pdf_of(b"q " * (MIB // 16)),
        lambda: b"%PDF-1.4\n" + b"1 0 obj\n" * 100_000 + b"startxref\n9\n%%EOF",
        lambda: b"",
    ],
    ids=["bomb", "bombs", "arrays", "dictionaries", "own kid", "own parent", "own form", "saves", "objects", "empty"],
)
def test_a_hostile_pdf_is_read_or_refused_in_a_sentence(guard: Guard, data: Callable[[], bytes]) -> None:
    try:
        assert len(guard.read_document("pdf", data(), "a.pdf")["text"]) < 100
    except FormatError as error:
        assert str(error).startswith("a.pdf ") and "\n" not in str(error)
    assert guard.read_document("pdf", pdf_of(TEXT % b"(next) Tj"), "b.pdf")["text"] == "next"


@pytest.mark.parametrize("num_cases", [40, pytest.param(2000, marks=SLOW)])
@pytest.mark.parametrize("kind", ["pdf", "docx"])
def test_a_damaged_document_is_read_or_refused(guard: Guard, kind: str, num_cases: int) -> None:
    look = WHITE + f'<w:rStyle w:val="x" xmlns:w="{W}"/>'
    whole = docx_of(paragraph("bees", look) * 20) if kind == "docx" else pdf_of(TEXT % (b"1 g (bees) Tj " * 20))
    chance = random.Random(4)
    for _ in range(num_cases):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 5])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert isinstance(guard.read_document(kind, bytes(damaged), "a")["text"], str)
        except FormatError as error:
            assert str(error).startswith("a ")


def test_a_document_that_takes_too_long_explodes_nothing_and_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with Guard() as guard:
        guard.read_document("pdf", pdf_of(TEXT % b"(a) Tj"), "a.pdf")
        monkeypatch.setattr(frames, "DOCUMENT_CPU_S", 0.05)
        with pytest.raises(FormatError, match=r"^a\.pdf was not done within 0 s$"):
            guard.read_document("pdf", pdf_of(TEXT % (b"(a) Tj " * 200_000)), "a.pdf")


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("docx", lambda: docx_of(paragraph("a"), parts={f"x{n}": b"" for n in range(10_001)}), "unpacks to"),
        ("docx", lambda: docx_of(paragraph("&a;"), before=FILE), "entities"),
        ("docx", lambda: docx_of(paragraph("a" * (5 * MIB))), "which is the limit"),
        ("docx", lambda: b"", "no .docx that can be read"),
        ("pdf", lambda: b"", "no PDF that can be read"),
    ],
)
def test_every_document_that_is_refused_is_refused_as_a_job(kind: str, data: Callable[[], bytes], said: str) -> None:
    """Here and not in the guard, where `test_every_refusal.py` sees it."""
    documents.import_reader(kind)
    with pytest.raises(JobError, match=said):
        documents.read(kind, data())


def test_a_document_that_is_nested_too_deeply_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(data: bytes, unseen: object) -> Iterator[str]:
        yield from deep(data, unseen)

    monkeypatch.setitem(documents._READERS, "pdf", deep)
    with pytest.raises(JobError, match="nested too deeply"):
        documents.read("pdf", b"")


def test_what_a_document_names_outside_of_itself_is_not_opened(guard: Guard) -> None:
    """Reading is sealed: what a document made the libraries open would be an error, not a file."""
    outside = docx_of(paragraph("&a;"), before="<!DOCTYPE x SYSTEM 'file:///etc/hostname'>")
    with pytest.raises(FormatError):
        guard.read_document("docx", outside, "a.docx")
