"""SQLite's file format, as far as rows are read from it without SQLite: pages, their cells, the journal (WAL).

For files that SQLite refuses. Nothing here trusts a number: what makes no sense is left out, never raised.
The format is described at https://www.sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

Value = int | float | str | bytes | None

HEADER_BYTES = 100
DEFAULT_PAGE_BYTES = 4096
INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF = b"\x02", b"\x05", b"\x0a", b"\x0d"
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_MAX_PAYLOAD_BYTES = 1 << 30
_INT_BYTES = (0, 1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Record:
    """A row of a table or an index. is_cut: its end could not be read; its last value may be cut short then."""

    rowid: int | None
    values: tuple[Value, ...]
    is_cut: bool


@dataclass(frozen=True)
class Journal:
    """What a WAL adds to its file: the last version of every page up to the last whole transaction."""

    pages: dict[int, bytes]
    is_damaged: bool
    """Whether a frame before the end of a whole transaction is not what was written: SQLite would leave out all behind
    it and say nothing."""


def page_bytes(main: bytes) -> int:
    """Return the size of the pages of a file."""
    size = int.from_bytes(main[16:18], "big")
    size = 65536 if size == 1 else size
    return size if 512 <= size <= 65536 and size & (size - 1) == 0 else DEFAULT_PAGE_BYTES


def read_journal(wal: bytes, size: int) -> Journal:
    """Return what is in a WAL."""
    step = _FRAME_HEADER_BYTES + size
    starts = range(_WAL_HEADER_BYTES, len(wal) - step + 1, step)
    if not starts:
        return Journal({}, is_damaged=False)
    order = ">" if wal[3:4] == b"\x83" else "<"
    sums = _checksum(wal[:24], order)
    is_header_whole = struct.pack(">II", *sums) == wal[24:32]
    # Of a damaged header, the frames say which salts are theirs.
    salts = wal[16:24] if is_header_whole else wal[starts[0] + 8 : starts[0] + 16]
    pages: dict[int, bytes] = {}
    waiting: dict[int, bytes] = {}
    bad, num_bad = int(not is_header_whole), 0
    for start in starts:
        head, page = wal[start : start + _FRAME_HEADER_BYTES], wal[start + _FRAME_HEADER_BYTES : start + step]
        number, commit = struct.unpack(">II", head[:8])
        is_whole = head[8:16] == salts and struct.pack(">II", *_checksum(head[:8] + page, order, sums)) == head[16:]
        # The next frame goes on from what was written here, damaged or not.
        sums = struct.unpack(">II", head[16:])
        bad += not is_whole
        if head[8:16] == salts or not is_whole:
            waiting[number] = page
        if is_whole and commit:
            pages |= waiting
            waiting, num_bad = {}, bad
    return Journal(pages, is_damaged=num_bad > 0)


def _checksum(data: bytes, order: str, start: tuple[int, ...] = (0, 0)) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for idx in range(0, len(words), 2):
        first = (first + words[idx] + second) & 0xFFFFFFFF
        second = (second + words[idx + 1] + first) & 0xFFFFFFFF
    return first, second


class Pages:
    """The pages of a file with those of its journal in their place, and the rows in them."""

    def __init__(self, main: bytes, wal: bytes = b"") -> None:
        self.size = page_bytes(main)
        self._main = main
        self._newer = read_journal(wal, self.size).pages
        self.count = max([-(-len(main) // self.size), *self._newer])
        self._overflow: set[int] = set()
        """Pages that hold the ends of long rows."""

    def page(self, number: int) -> bytes:
        """Return a page, empty if there is none; the last one of a file that was cut may be short."""
        if number in self._newer:
            return self._newer[number]
        return self._main[(number - 1) * self.size : number * self.size] if number > 0 else b""

    def free(self) -> set[int]:
        """Return the pages that hold nothing any more, as far as their list can be read: rows in them were deleted."""
        found: set[int] = set()
        trunk = int.from_bytes(self.page(1)[32:36], "big")
        while 1 < trunk <= self.count and trunk not in found:
            found.add(trunk)
            page = self.page(trunk)
            trunk, num_leaves = (int.from_bytes(page[at : at + 4], "big") for at in (0, 4))
            leaves = page[8 : 8 + 4 * min(num_leaves, self.size // 4 - 2)]
            found |= {int.from_bytes(leaves[at : at + 4], "big") for at in range(0, len(leaves), 4)}
        return found

    def table_rows(self) -> Iterator[Record]:
        """Yield every row of every table. Pages whose kind is not readable come last: they may be the ends of rows,
        which is known by then."""
        free, unclear = self.free(), []
        for number in range(1, self.count + 1):
            kind = self.page(number)[_start(number) :][:1]
            if number in free or kind in (INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF):
                continue
            if kind != TABLE_LEAF:
                unclear.append(number)
                continue
            yield from self._rows(number, has_rowid=True)
        for number in unclear:
            if number not in self._overflow:
                yield from self._rows(number, has_rowid=True)

    def index_rows(self) -> Iterator[Record]:
        """Yield every entry of every index."""
        free = self.free()
        for number in range(1, self.count + 1):
            kind = self.page(number)[:1]
            if number not in free and kind in (INDEX_INTERIOR, INDEX_LEAF):
                yield from self._rows(number, has_rowid=False, skipped=4 if kind == INDEX_INTERIOR else 0)

    def _rows(self, number: int, *, has_rowid: bool, skipped: int = 0) -> Iterator[Record]:
        page, start = self.page(number), _start(number)
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        pointers = start + (12 if skipped else 8)
        for at in range(pointers, min(pointers + 2 * count, len(page) - 1), 2):
            record = self._cell(page, int.from_bytes(page[at : at + 2], "big") + skipped, has_rowid)
            if record is not None:
                yield record

    def _cell(self, page: bytes, at: int, has_rowid: bool) -> Record | None:
        length, at = _varint(page, at)
        rowid: int | None = None
        if has_rowid:
            rowid, at = _varint(page, at)
        if not 0 < length <= _MAX_PAYLOAD_BYTES or at >= len(page):
            return None
        payload = self._payload(page, at, length, self.size - 35 if has_rowid else (self.size - 12) * 64 // 255 - 23)
        return _record(rowid, payload, is_cut=len(payload) < length)

    def _payload(self, page: bytes, at: int, length: int, most: int) -> bytes:
        """Return the bytes of a row; of one that goes on on other pages as many as there are."""
        if length <= most:
            return page[at : at + length]
        least = (self.size - 12) * 32 // 255 - 23
        local = least + (length - least) % (self.size - 4)
        local = local if local <= most else least
        parts, left = [page[at : at + local]], length - local
        following, seen = int.from_bytes(page[at + local : at + local + 4], "big"), set[int]()
        while left > 0 and 1 < following <= self.count and following not in seen:
            seen.add(following)
            more = self.page(following)
            parts.append(more[4 : 4 + min(left, self.size - 4)])
            left -= len(parts[-1])
            is_short = len(more) < self.size  # what comes behind a gap would be taken for what is in it
            following = 0 if is_short else int.from_bytes(more[:4], "big")
        self._overflow |= seen
        return b"".join(parts)


def _start(number: int) -> int:
    return HEADER_BYTES if number == 1 else 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 1 to 9 bytes and where it ends; a place behind the data where it is cut."""
    value = 0
    for idx in range(9):
        if at + idx >= len(data):
            return 0, len(data) + 1
        byte = data[at + idx]
        if idx == 8:
            value = value << 8 | byte
            break
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value - (1 << 64) if value >> 63 else value, at + idx + 1


def _record(rowid: int | None, payload: bytes, *, is_cut: bool) -> Record | None:
    header_bytes, at = _varint(payload, 0)
    if not at <= header_bytes <= len(payload):
        return None
    values: list[Value] = []
    end = header_bytes
    while at < header_bytes:
        kind, at = _varint(payload, at)
        length = _length(kind)
        if length is None:
            return None
        raw = payload[end : end + length]
        end += length
        if len(raw) < length and (not is_cut or kind < 12):
            return Record(rowid, tuple(values), is_cut=True)
        if len(raw) < length:
            cut = _value(kind, raw)
            values.append(cut.removesuffix("\ufffd") if isinstance(cut, str) else cut)
            return Record(rowid, tuple(values), is_cut=True)
        values.append(_value(kind, raw))
    return Record(rowid, tuple(values), is_cut=is_cut)


def _length(kind: int) -> int | None:
    if kind >= 12:
        return (kind - 12) // 2
    if 0 <= kind <= 6:
        return _INT_BYTES[kind]
    return {7: 8, 8: 0, 9: 0}.get(kind)


def _value(kind: int, raw: bytes) -> Value:
    if kind >= 12:
        return raw.decode("utf-8", "replace") if kind % 2 else raw
    if kind == 7:
        return float(struct.unpack(">d", raw)[0])
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(raw, "big", signed=True) if kind else None
