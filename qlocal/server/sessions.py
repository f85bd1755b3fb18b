"""What is kept of conversations on disk: told, removed, and kept under a name whatever the quota would remove."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from qlocal.cache.saved_session import saved_sessions, session_path
from qlocal.errors import RequestError, SessionError
from qlocal.protocol import Sampling, Submit
from qlocal.server import scoring
from qlocal.server.engine_client import EngineClient
from qlocal.server.jobs import Prompts
from qlocal.server.own_requests import SaveRequest
from qlocal.server.shapes import Json

_SUFFIXES = (".kv", ".constants", ".session", ".part")


def stored(folder: Path | None) -> Json:
    """Return the folder, the number of files and bytes in it, and the saved sessions; nothing where none are kept."""
    sizes = [path.stat().st_size for path in _files(folder)]
    saved = [one.to_json() for one in saved_sessions(folder)]
    name = None if folder is None else str(folder)
    return {"folder": name, "files": len(sizes), "bytes": sum(sizes), "saved": saved}


def forget(folder: Path | None) -> Json:
    """Remove everything that is kept, and return what is left as `stored` does."""
    for path in _files(folder):
        path.unlink(missing_ok=True)
    return stored(folder)


def forget_saved(folder: Path | None, name: str) -> Json:
    """Remove a saved session; its blocks go when others need the room. RequestError (404) where there is none."""
    with contextlib.suppress(SessionError, FileNotFoundError):
        if folder is not None:
            session_path(folder, name).unlink()
            return stored(folder)
    raise _no_session(name)


async def save(request: SaveRequest, prompts: Prompts, engine: EngineClient) -> Json:
    """Read a prompt, as far as it is not in the cache, and keep it under a name."""
    if request.messages is not None:
        ids = await prompts.encode_chat(request.messages, request.tools or ())
    else:
        ids = prompts.checked_ids(request.prompt_ids or [], "prompt_ids")
    prompts.limit(ids, None, "messages" if request.messages is not None else "prompt_ids")
    read = await _read(ids, prompts, engine)
    try:
        tokens = await engine.save_session(request.name, prompts.model.name, ids)
    except SessionError as error:
        raise RequestError(str(error), status=409, param="name", code="session_not_saved") from error
    return _told(request.name, prompts, tokens, *read)


async def restore(name: str, prompts: Prompts, engine: EngineClient) -> Json:
    """Bring a saved session into the cache. RequestError where it is missing, another model's or damaged."""
    try:
        ids = await engine.find_session(name)
    except SessionError as error:
        is_missing = "there is no session" in error.message
        status, code = (404, "session_not_found") if is_missing else (409, "session_differs")
        raise RequestError(str(error), status=status, param="name", code=code) from error
    prompts.limit(ids, None, "name")
    cached, restored = await _read(ids, prompts, engine)
    if cached < len(ids) - 1:
        raise RequestError(
            f"{len(ids) - cached} of the {len(ids)} tokens of '{name}' were damaged and had to be computed again",
            status=409,
            param="name",
            code="session_differs",
            hint="Save it again.",
        )
    return _told(name, prompts, len(ids), cached, restored)


async def _read(ids: list[int], prompts: Prompts, engine: EngineClient) -> tuple[int, int]:
    """Have the engine read a prompt; return how many of its tokens were cached, and how many of those on disk."""
    submit = Submit(
        f"session-{uuid.uuid4().hex}",
        ids,
        max_tokens=1,
        stop_ids=[],
        sampling=Sampling(),
        num_tokens=prompts.model.tokenizer.num_tokens,
    )
    started = await scoring.read(engine, submit)
    return started.cached_tokens, started.restored_tokens


def _told(name: str, prompts: Prompts, tokens: int, cached: int, restored: int) -> Json:
    return {
        "name": name,
        "model": prompts.model.name,
        "tokens": tokens,
        "cached_tokens": cached,
        "restored_tokens": restored,
    }


def _no_session(name: str) -> RequestError:
    return RequestError(
        f"there is no session '{name[:80]}'",
        status=404,
        param="name",
        code="session_not_found",
        hint="`qlocal sessions` lists them.",
    )


def _files(folder: Path | None) -> Iterator[Path]:
    if folder is not None and folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
