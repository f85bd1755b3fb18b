"""Files as text for a conversation: text in UTF-8 as it is, PDF and .docx by their libraries, anything else refused."""

from __future__ import annotations

from pathlib import Path

from qlocal.errors import FormatError, UsageError

MAX_FILE_BYTES = 32 << 20
MAX_TEXT_CHARS = 4 << 20
INSTALL = "Install them with `pip install 'qlocal[docs]'`"


def read_document(path: Path) -> str:
    """Return the text of a file. UsageError or FormatError names the file and says what is wrong with it."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UsageError(f"{path} is no file")
        if size > MAX_FILE_BYTES:
            raise UsageError(f"{path} has {size / 2**20:,.1f} MiB, a file may have at most {MAX_FILE_BYTES >> 20} MiB")
        text = _READERS.get(path.suffix.lower(), _plain)(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(text) > MAX_TEXT_CHARS:
        raise UsageError(f"{path} has {len(text):,} characters of text, at most {MAX_TEXT_CHARS:,} can be sent")
    if not text.strip():
        raise FormatError(f"{path} has no text in it", hint="A scanned PDF holds pictures of text: recognize it first")
    return text


def _plain(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no text in UTF-8 (byte {error.start:,}): binary files cannot be sent") from None
    if "\0" in text:
        raise FormatError(f"{path} is binary (it has zero bytes) and cannot be sent")
    return text.replace("\r\n", "\n")


def _pdf(path: Path) -> str:
    # An optional library, and a slow one to import.
    try:
        import pypdf
    except ImportError:
        raise UsageError(f"{path}: PDF needs the libraries for documents", hint=INSTALL) from None
    try:
        with pypdf.PdfReader(path) as reader:
            return "\n\n".join(page.extract_text() for page in reader.pages)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes it raise nearly anything
        raise FormatError(f"{path} is no PDF that can be read: {error}") from error


def _docx(path: Path) -> str:
    try:
        import docx
    except ImportError:
        raise UsageError(f"{path}: .docx needs the libraries for documents", hint=INSTALL) from None
    try:
        document = docx.Document(str(path))
        parts = [_docx_text(part) for part in document.iter_inner_content()]
    except OSError:
        raise
    except Exception as error:  # as above
        raise FormatError(f"{path} is no .docx that can be read: {error}") from error
    return "\n\n".join(part for part in parts if part)


def _docx_text(part: object) -> str:
    """Return a paragraph, or a table as one of Markdown."""
    rows = getattr(part, "rows", None)
    if rows is None:
        return str(getattr(part, "text", ""))
    return "\n".join("| " + " | ".join(cell.text for cell in row.cells) + " |" for row in rows)


_READERS = {".pdf": _pdf, ".docx": _docx}
