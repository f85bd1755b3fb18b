"""Small PDF and .docx files, made by hand so that they can be wrong in any way."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_RELATIONSHIPS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_ROOTS = {"header": "hdr", "footer": "ftr"}
_TYPES = "application/vnd.openxmlformats-officedocument.wordprocessingml"


def pdf_of(stream: bytes, *, page: bytes = b"", head: bytes = b"", more: tuple[bytes, ...] = ()) -> bytes:
    """Return a PDF of one page. page, head: entries of the page and of the stream; more: objects from number 5 on."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R %s"
        b" /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
        b" /XObject << /X1 5 0 R >> >> >>" % page,
        b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(stream), head, stream),
        *more,
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    size = len(objects) + 1
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + b"xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        size,
        table,
        size,
        len(data),
    )


def docx_of(
    body: str,
    *,
    before: str = "",
    parts: Mapping[str, bytes] = {},
    comments: str = "",
    styles: str = "",
    notes: Mapping[str, str] = {},
    margins: Sequence[tuple[str, str]] = (),
) -> bytes:
    """Return a .docx of this XML. before: what stands ahead of the document's root; parts: files beside it; notes:
    footnotes and endnotes; margins: kinds (`header`, `footer`) and what stands there, in several parts."""
    types = f'<Override PartName="/word/document.xml" ContentType="{_TYPES}.document.main+xml"/>'
    beside = [(name, name, xml) for name, xml in {"comments": comments, "styles": styles, **notes}.items() if xml]
    beside += [(f"{kind}{number}", kind, xml) for number, (kind, xml) in enumerate(margins)]
    related = ""
    for name, kind, _ in beside:
        types += f'<Override PartName="/word/{name}.xml" ContentType="{_TYPES}.{kind}+xml"/>'
        related += f'<Relationship Id="{name}" Type="{_OFFICE}/{kind}" Target="{name}.xml"/>'
    files = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        f'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>{types}'
        "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{_RELATIONSHIPS}">'
        f'<Relationship Id="r1" Type="{_OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{_RELATIONSHIPS}">{related}</Relationships>',
        "word/document.xml": f'{before}<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>',
        **{f"word/{name}.xml": _root(_ROOTS.get(kind, kind), xml) for name, kind, xml in beside},
        **parts,
    }
    written = BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return written.getvalue()


def _root(tag: str, xml: str) -> str:
    return f'<w:{tag} xmlns:w="{W}">{xml}</w:{tag}>'


def paragraph(text: str, look: str = "") -> str:
    return f"<w:p><w:r><w:rPr>{look}</w:rPr><w:t>{text}</w:t></w:r></w:p>"
