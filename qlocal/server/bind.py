"""The listening sockets, made here and handed to uvicorn, which would open a Unix socket to every local user."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlocal.errors import UsageError

LOOPBACK = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}
BACKLOG = 256
LAST_SERVER_S = 10.0
"""How long the server before this one may take to end its engine."""
_UCRED = struct.Struct("3i")  # pid, uid, gid

log = logging.getLogger(__name__)


class OwnUserSocket(socket.socket):
    """A listening Unix socket that accepts connections of its own user (and root) alone."""

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (os.getuid(), 0):
            connection.close()
            log.warning("refused a connection of user %s", uid)
            raise ConnectionAbortedError(errno.ECONNABORTED, "the peer is another user")
        return connection, address


@contextmanager
def bind_unix(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket: folder 0700, socket 0600, removed at the end.

    A lock file beside it says whether a server is alive, so that a left-over socket is replaced and a live one is not.
    """
    if len(os.fsencode(path)) > 107:
        raise UsageError(f"--socket {path}: the path has {len(os.fsencode(path))} bytes, the limit is 107")
    _make_private_folder(path.parent)
    with _locked(path.with_suffix(".lock"), path):
        path.unlink(missing_ok=True)
        listener = OwnUserSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            old_mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(old_mask)
            listener.listen(BACKLOG)
            yield listener
        finally:
            path.unlink(missing_ok=True)
            listener.close()


@contextmanager
def bind_tcp(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on a TCP port of the loopback; port 0 takes a free one."""
    if host not in LOOPBACK:
        raise UsageError(
            f"--host {host}: only the loopback is served ({', '.join(LOOPBACK)})",
            hint="Put a proxy with its own encryption in front to reach it from other machines.",
        )
    listener = socket.socket(LOOPBACK[host], socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"--port {port}: cannot listen there: {error}") from error
        listener.listen(BACKLOG)
        yield listener
    finally:
        listener.close()


def read_or_make_token(path: Path) -> str:
    """Return the token in `path`, written with a new one (mode 0600) when there is none."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise UsageError(f"{path}: others can read the token file", hint=f"Run: chmod 600 {path}")
            token = file.read(4096).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return _make_token(path)
    except OSError as error:
        raise UsageError(f"{path}: the token file cannot be read: {error.strerror}") from error
    if len(token) < 16:
        raise UsageError(f"{path}: the token has {len(token)} characters, at least 16 are needed")
    return token


def _make_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
    except OSError as error:
        raise UsageError(f"{path}: the token file cannot be written: {error.strerror}") from error
    return token


def _make_private_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UsageError(f"{folder}: the socket's folder cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(f"{folder}: the socket's folder must be a folder of your own")
    if found.st_mode & 0o077:
        raise UsageError(f"{folder}: others can enter the socket's folder", hint=f"Run: chmod 700 {folder}")


@contextmanager
def _locked(path: Path, socket_path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LAST_SERVER_S
        while not _try_lock(descriptor):
            # A server that still listens stays; one that does not is on its way out.
            if _listens(socket_path) or time.monotonic() > deadline:
                raise UsageError(f"{socket_path}: a server is running there already", hint="Stop it: `qlocal stop`.")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
