"""Split a byte stream into server-sent events.

Lines end at \\n or \\r\\n alone: a JSON text may hold U+2028 and its like unescaped, where `str.splitlines`
(and with it httpx's own line reader) would cut it in two.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from qlocal.errors import ServerError

MAX_EVENT_BYTES = 16 << 20
OWN_COMMENT = ": qlocal "


async def event_data(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Yield the data of every complete event; pings and other fields are left out, comments too, but for those of our
    server, which come as they are: a colon, `qlocal`, and JSON.

    A last event without its empty line is one that was cut, unless it is `[DONE]`. ServerError above 16 MiB.
    """
    data: list[bytes] = []
    async for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            _check_size(sum(map(len, data)))
        elif line.startswith(OWN_COMMENT.encode()):
            _check_size(len(line))
            yield line.decode("utf-8", "replace")
        elif not line and data:
            yield b"\n".join(data).decode("utf-8", "replace")
            data = []
    if data == [b"[DONE]"]:
        yield "[DONE]"


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield lines without their ends; what follows the last end only at the end of the stream."""
    rest: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *complete, last = chunk.split(b"\n")
        for line in complete:
            yield (b"".join([*rest, line])).removesuffix(b"\r")
            rest, size = [], 0
        rest.append(last)
        size += len(last)
        _check_size(size)
    if size:
        yield b"".join(rest).removesuffix(b"\r")


def _check_size(size: int) -> None:
    if size > MAX_EVENT_BYTES:
        raise ServerError(f"the server sent an event of more than {MAX_EVENT_BYTES} bytes")
