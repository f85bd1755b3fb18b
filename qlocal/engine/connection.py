"""Frames over a socket, as a rank sees them: what has arrived, without waiting unless asked to. No torch."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

from qlocal.protocol import HEADER, Message, decode, encode, frame_length

READ_BYTES = 1 << 20


class Closed(Exception):
    """The other end of the socket is gone, or asks to shut down."""


class Connection:
    """Frames over the socket. Reads what has arrived, without waiting unless asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = bytearray()

    def send(self, message: Message) -> None:
        try:
            self.socket.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(
        self, *, wait: bool, beside: Sequence[socket.socket] = (), timeout_s: float | None = None
    ) -> list[Message]:
        """Return the messages that have arrived; with `wait`, after something has, here or on a socket `beside`, or
        nothing within `timeout_s`. `Closed` when all that came before the end was returned."""
        if wait:
            select.select([self.socket, *beside], [], [], timeout_s)
        closed: Closed | None = None
        while closed is None and select.select([self.socket], [], [], 0)[0]:
            try:
                self._read()
            except Closed as error:
                closed = error
        messages = []
        while (payload := self._next_payload()) is not None:
            messages.append(decode(payload))
        if closed is not None and not messages:
            raise closed
        return messages

    def _read(self) -> None:
        try:
            data = self.socket.recv(READ_BYTES)
        except ConnectionResetError as error:
            raise Closed from error
        if not data:
            raise Closed
        self._buffer += data

    def _next_payload(self) -> bytes | None:
        if len(self._buffer) < HEADER.size:
            return None
        end = HEADER.size + frame_length(bytes(self._buffer[: HEADER.size]))
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return payload
