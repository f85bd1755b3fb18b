"""Finding or starting this user's server, and HTTP clients to it. No torch.

One server a user: its private socket, log and lock lie in the runtime folder of the settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from qlocal.catalog import display_name, resolve, resolve_draft
from qlocal.config import AUTO, FROM_CONTEXT, NO_DRAFT, STORED, EngineOptions, Settings, kv_types, load_settings
from qlocal.errors import EngineError, QLocalError, RequestError, UsageError
from qlocal.schema import EngineState, Status

SERVE_COMMAND = (sys.executable, "-m", "qlocal.cli", "serve")
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
MAX_SOCKET_PATH = 100
"""Linux allows 107 bytes in a Unix socket's address."""

_started: list[subprocess.Popen[bytes]] = []
"""Servers of this process. They outlive it; those that ended before are collected by `poll`."""


@dataclass(frozen=True)
class Address:
    """Where a server is: a Unix socket, or a base URL with its token."""

    socket: Path | None = None
    url: str = "http://localhost"
    token: str | None = None

    def __str__(self) -> str:
        return str(self.socket) if self.socket is not None else self.url

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def runtime_folder(settings: Settings | None = None) -> Path:
    """Return the folder of socket, lock and log: the settings' one, or a short private one where that is too long."""
    folder = (settings or load_settings()).runtime
    if len(os.fsencode(folder / "server.sock")) > MAX_SOCKET_PATH:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"qlocal-{os.getuid()}-{digest}"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        # Somebody who made it first could listen there and read every conversation.
        raise UsageError(f"{folder} belongs to another user", hint="Name another folder with QLOCAL_RUNTIME.")
    return folder


def own_address(settings: Settings | None = None) -> Address:
    """Return where this user's server listens, whether it runs or not."""
    return Address(socket=runtime_folder(settings) / "server.sock")


def connect(address: Address, *, read_timeout_s: float | None = 60.0) -> httpx.Client:
    """Return a client. The server pings streams every 10 s; answers in one piece need `read_timeout_s` None."""
    transport = httpx.HTTPTransport(uds=str(address.socket)) if address.socket else httpx.HTTPTransport()
    return httpx.Client(
        transport=transport, base_url=address.url, headers=address.headers(), timeout=_timeout(read_timeout_s)
    )


def connect_async(address: Address, *, read_timeout_s: float | None = 60.0) -> httpx.AsyncClient:
    """As `connect`, for asyncio."""
    transport = httpx.AsyncHTTPTransport(uds=str(address.socket)) if address.socket else httpx.AsyncHTTPTransport()
    return httpx.AsyncClient(
        transport=transport, base_url=address.url, headers=address.headers(), timeout=_timeout(read_timeout_s)
    )


def error_of(response: httpx.Response) -> QLocalError:
    """Return the error that a response carries; its body must have been read."""
    try:
        error = response.json()["error"]
        return RequestError(error["message"], status=response.status_code, param=error["param"], code=error["code"])
    except (ValueError, KeyError, TypeError):
        return EngineError(f"the server answered {response.status_code} {response.reason_phrase}")


def events_of(
    response: httpx.Response, on_comment: Callable[[dict[str, Any]], None] = lambda value: None
) -> Iterator[dict[str, Any] | None]:
    """Yield the JSON events of one of our streams; None stands for `[DONE]`. EngineError when it breaks off.

    on_comment: gets what our server says beside the events."""
    try:
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield None if line == "data: [DONE]" else json.loads(line[6:])
            elif line.startswith(": qlocal "):
                on_comment(json.loads(line.removeprefix(": qlocal ")))
    except httpx.TransportError as error:
        raise EngineError(f"the server went away: {error}") from error


def fetch_status(address: Address) -> Status | None:
    """Return the server's status, or None when none answers there."""
    if not _listens(address):
        return None
    try:
        with connect(address, read_timeout_s=5.0) as client:
            response = client.get("/qlocal/status")
    except httpx.TransportError:
        return None
    if response.status_code != 200:
        raise error_of(response)
    return Status.from_json(response.json())


def ensure_server(
    model: str | None, options: EngineOptions | None = None, announce: Callable[[str], None] = lambda said: None
) -> Address:
    """Find this user's server or start one in the background; return once it answers, not once it has loaded.

    A server that runs with another model, or has loaded it otherwise, is asked to change it, and `announce` is told so.
    Raises UsageError when there is no such model, EngineError when no server comes up.
    """
    options = options or EngineOptions()
    settings = load_settings()
    if model is not None:
        model = str(resolve(model, settings.home))  # absolute: the server has another working folder
    if options.draft is not None:
        options = replace(options, draft=resolve_draft(options.draft, settings.home))
    address = own_address(settings)
    status = fetch_status(address)
    if status is None:
        _start(model, options, settings, address)
    elif model is not None and (reason := _reason_to_load(model, options, status)) is not None:
        announce(f"the server that runs {reason}")
        request_load(address, model, options)
    return address


def request_load(address: Address, model: str, options: EngineOptions) -> Status:
    """Ask a server to load a model; returns its status at once. What is left open stays as it runs."""
    with connect(address) as client:
        response = client.post("/qlocal/load", json={"model": model} | options.named())
    if response.status_code != 202:
        raise error_of(response)
    return Status.from_json(response.json())


def stop(address: Address | None = None) -> bool:
    """Stop this user's server (or the one at `address`) and wait until it is gone. False when none ran."""
    address = address or own_address()
    if fetch_status(address) is None:
        return False
    with connect(address) as client:
        client.post("/qlocal/stop")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if not _is_alive(address):
            _started[:] = [process for process in _started if process.poll() is None]
            return True
        time.sleep(POLL_S)
    raise EngineError(f"the server at {address} did not end within {STOP_TIMEOUT_S:g} s")


def _is_alive(address: Address) -> bool:
    """Whether a server's process is there, even one that has closed its socket and is ending its engine."""
    if address.socket is None:
        return fetch_status(address) is not None
    with address.socket.with_suffix(".lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _listens(address: Address) -> bool:
    """Whether somebody accepts connections at a Unix socket; of other addresses only a request can tell."""
    if address.socket is None:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(address.socket))
        except OSError:
            return False
    return True


def _timeout(read_timeout_s: float | None) -> httpx.Timeout:
    return httpx.Timeout(30.0, connect=5.0, read=read_timeout_s)


def _reason_to_load(path: str, options: EngineOptions, status: Status) -> str | None:
    """Return in a few words what a server must load or change for these options, None where it holds all of it."""
    plan = status.plan
    if status.state in (EngineState.FAILED, EngineState.EMPTY) or status.path != path:
        return f"loads {display_name(Path(path))}"
    again = f"loads {status.model} again"
    if (options.max_context or 0) > (status.max_context or options.max_context or 0):
        return f"{again}, with a context of {options.max_context} instead of {status.max_context}"
    if plan is None:
        return None
    if not _devices(plan) <= set(options.devices):
        return f"{again}, on {', '.join(options.devices)}"
    if options.split not in ("auto", plan.get("split")) and len(options.devices) > 1:
        return f"{again}, in a {options.split} split"
    if options.head is not None and plan.get("head", STORED) != options.head:
        return f"{again}, with its head held as {options.head}"
    if not _holds(plan, options.kv):
        held = ",".join(dict.fromkeys((plan["key_type"], plan["value_type"])))
        return f"{again}, with keys and values in {options.kv} instead of {held}"
    if options.draft not in (None, plan.get("guesses")):
        return f"{again}, with {_guesses(options.draft)}"
    return None


def _guesses(draft: str | None) -> str:
    names = {FROM_CONTEXT: "guesses by the context alone", NO_DRAFT: "no guesses"}
    return names.get(draft or FROM_CONTEXT) or f"the draft model {display_name(Path(draft or ''))}"


def _holds(plan: Mapping[str, Any], kv: str | None) -> bool:
    """Say whether a plan's cache is of the types asked for; none and `auto` take what is there."""
    return kv in (None, AUTO) or kv_types(kv) == (plan.get("key_type"), plan.get("value_type"))


def _devices(plan: Mapping[str, Any]) -> set[str]:
    """Return the devices that a plan was asked to use: beside cards, the CPU takes what they cannot hold."""
    used = {part["device"] for part in plan["devices"]}
    return used - {"cpu"} or used


def _start(model: str | None, options: EngineOptions, settings: Settings, address: Address) -> None:
    assert address.socket is not None, "the own server listens on a socket"
    folder = address.socket.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = folder / "server.log"
    with log_path.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            [*SERVE_COMMAND, *_serve_arguments(model, options, settings, address.socket)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # outlives this terminal, and its Ctrl-C
        )
    _started.append(process)
    deadline = time.monotonic() + START_TIMEOUT_S
    while fetch_status(address) is None:
        if process.poll() is not None and fetch_status(address) is None:
            raise _start_error(log_path, log_start)
        if time.monotonic() > deadline:
            process.terminate()
            raise EngineError(f"the server did not answer within {START_TIMEOUT_S:g} s", hint=f"Its log: {log_path}.")
        time.sleep(POLL_S)


def _serve_arguments(model: str | None, options: EngineOptions, settings: Settings, socket: Path) -> list[str]:
    arguments = ["--socket", str(socket), "--idle-exit", f"{settings.idle_exit_s:g}"]
    arguments += ["--devices", ",".join(options.devices), "--dtype", options.dtype, "--kernels", options.kernels]
    arguments += ["--split", options.split]
    optional = {
        "--context": options.max_context,
        "--threads": options.threads,
        "--max-memory": options.max_memory,
        "--head": options.head,
        "--kv": options.kv,
        "--draft": options.draft,
        "--offload": options.offload,
        "--slots": options.slots,
        "--chunk": options.prefill_chunk,
        "--reserve": options.card_reserve,
        "--sessions": options.sessions_bytes,
        "--host-cache": options.host_cache_bytes,
    }
    for flag, value in optional.items():
        if value is not None:
            arguments += [flag, str(value)]
    return arguments if model is None else [*arguments, model]


def _start_error(log_path: Path, log_start: int) -> QLocalError:
    """Return the last line that the server wrote before it ended: it explains itself in one."""
    with log_path.open("rb") as log:
        log.seek(log_start)
        lines = log.read()[-4096:].decode("utf-8", "replace").strip().splitlines()
    said = lines[-1].removeprefix("qlocal: ") if lines else "it said nothing"
    return UsageError(f"the server could not start: {said}", hint=None if lines else f"Its log: {log_path}.")
