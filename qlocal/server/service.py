"""What the server does, without HTTP: which model is loaded, and whether its engine is well."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qlocal import catalog
from qlocal.catalog import display_name
from qlocal.config import FROM_CONTEXT, NO_DRAFT, STORED, EngineOptions, device_list, kv_types
from qlocal.devices import free_bytes
from qlocal.errors import EngineError, QLocalError, RequestError
from qlocal.formats.identity import content_identity
from qlocal.protocol import Finished, Load, Sampling, Submit, Tokens
from qlocal.schema import EngineState, LoadProgress, Template
from qlocal.server import variants
from qlocal.server.engine_client import EngineClient
from qlocal.server.own_requests import LoadRequest
from qlocal.server.preflight import shown_plan
from qlocal.server.sampling import default_sampling, told
from qlocal.server.seen_templates import SeenTemplates
from qlocal.server.status import StatusBoard
from qlocal.server.text import ModelText, OpenText
from qlocal.server.variants import Variant
from qlocal.tokenizer.shared import require_same_tokens

HEALTH_TIMEOUT_S = 5.0
USAGE_TIMEOUT_S = 1.0

Resolve = Callable[[str], Path]
Check = Callable[[Load], dict[str, Any] | None]
"""Returns the plan where it is known; raises a QLocalError for what cannot be loaded, before an engine is started."""
log = logging.getLogger(__name__)


class Service:
    """One server's state: the status board, the engine, and the text side of the model that is loaded."""

    def __init__(
        self,
        engine: EngineClient,
        board: StatusBoard,
        open_text: OpenText,
        resolve: Resolve,
        check: Check,
        templates: SeenTemplates | None = None,
    ) -> None:
        """templates: those that are warned of no more; None warns of none."""
        self.engine = engine
        self.board = board
        self.created = int(time.time())
        self._open_text = open_text
        self._resolve = resolve
        self._check = check
        self._templates = templates
        self._model: ModelText | None = None
        self._last: tuple[Path, EngineOptions] | None = None
        """What was loaded last, or was to be, and how."""
        self._loading: asyncio.Task[None] | None = None
        self._one_load = asyncio.Lock()
        self._health_ids = itertools.count()

    async def load(self, request: LoadRequest, options: EngineOptions) -> None:
        """Stop what is loaded and start loading another model; returns before it is ready.

        options: as the server was started. What is loaded once more keeps the options it has, but for those named.

        Raises RequestError when there is no such model; later failures appear on the status board.
        """
        if options.nodes is not None and self.board.status.path is not None:
            raise RequestError(
                f"the model is shared by {options.nodes.count} nodes, and cannot be changed while they run",
                hint="Start all nodes with the other model.",
            )
        path = await self._found(request.model, "model")
        # Of two that change one option each, the second is put on what the first asked for.
        async with self._one_load:
            options = _with_request(self._options_of(path, options), options, request)
            if options.draft not in (None, FROM_CONTEXT, NO_DRAFT):
                options = replace(options, draft=str(await self._found(options.draft, "draft")))
            await self._replace(path, options)

    async def plan(self, request: LoadRequest, options: EngineOptions) -> dict[str, Any]:
        """Return what loading would take, as if nothing were loaded. RequestError says why it cannot be."""
        path = await self._found(request.model, "model")
        options = _with_request(self._options_of(path, options), options, request)
        free = self._free_without_model()
        try:
            return await asyncio.to_thread(lambda: shown_plan(load_message(path, options), free))
        except QLocalError as error:
            raise RequestError(str(error), param="model", code="cannot_be_loaded") from error

    def _options_of(self, path: Path, options: EngineOptions) -> EngineOptions:
        """Return the options that a model runs with or is loading with, else `options`: what failed with an option is
        not to fail with it again when nobody names it."""
        runs = self.board.status.state in (EngineState.READY, EngineState.LOADING)
        return self._last[1] if runs and self._last is not None and self._last[0] == path else options

    def _free_without_model(self) -> dict[str, int]:
        """Return what is free on devices that hold a part of the model, which another one would take the place of."""
        used = self.board.status.used or {}
        return {device: free_bytes(device) + taken for device, taken in used.items() if "/" not in device}

    async def _found(self, name: str, param: str) -> Path:
        try:
            return await asyncio.to_thread(self._resolve, name)
        except QLocalError as error:
            raise RequestError(str(error), status=404, param=param, code="model_not_found") from error

    async def _replace(self, path: Path, options: EngineOptions) -> None:
        await self._stop_loading()
        await self.engine.stop()
        self._model, self._last = None, (path, options)
        name = display_name(path)
        self.board.update(
            state=EngineState.LOADING,
            model=name,
            path=str(path),
            error=None,
            max_context=None,
            plan=None,
            used=None,
            held_head=None,
            template=None,
            weights=None,
            sampling=None,
            progress=LoadProgress("reading headers and tokenizer"),
        )
        self._loading = asyncio.create_task(self._load(name, path, options), name="load")

    async def close(self) -> None:
        """End the engine."""
        await self._stop_loading()
        await self.engine.stop()

    def model(self, name: str | None) -> ModelText:
        """Return the loaded model; RequestError when it is another one (404) or not ready (503)."""
        status = self.board.status
        if status.state is EngineState.READY and self._model is not None:
            if name is not None and name not in (self._model.name, str(self._model.path)):
                raise RequestError(
                    f"the model '{name[:200]}' is not loaded; this server has '{self._model.name}'",
                    status=404,
                    param="model",
                    code="model_not_found",
                )
            return self._model
        reasons = {
            EngineState.EMPTY: "no model is loaded",
            EngineState.LOADING: f"the model '{status.model}' is still loading",
            EngineState.FAILED: f"the model '{status.model}' could not be loaded: {status.error}",
        }
        raise RequestError(
            reasons.get(status.state, "the model is being changed"), status=503, code=f"model_{status.state.value}"
        )

    async def variants(self) -> list[Variant]:
        """Return the checkpoints at hand, in the model folder and beside the loaded one, that are variants of it."""
        model = self.model(None)

        def find() -> list[Variant]:
            return variants.find(model, catalog.installed() | catalog.beside(model.path), self._open_text)

        return await asyncio.to_thread(find)

    @property
    def max_context(self) -> int:
        return self.board.status.max_context or 0

    async def check_health(self) -> None:
        """Make the engine produce one token, or see that it does; RequestError 503 when it does not in time."""
        model = self.model(None)
        if time.monotonic() - self.engine.last_token_s < HEALTH_TIMEOUT_S:
            return
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self._one_token(model)
        except (TimeoutError, EngineError) as error:
            # A long prompt may keep the engine from our token, but not from saying that it works.
            reason = str(error) or f"the engine gave no token within {HEALTH_TIMEOUT_S:g} s"
            raise RequestError(reason, status=503, code="engine_unhealthy") from error

    async def usage(self) -> dict[str, int] | None:
        """Return what of the engine is in use; None while a long step keeps it from saying so."""
        pong = await self.engine.usage(USAGE_TIMEOUT_S)
        if pong is None:
            return None
        return {name: value for name, value in asdict(pong).items() if name not in ("nonce", "cached_tokens")}

    async def cached_tokens(self, input_ids: list[int]) -> int | None:
        """Return how many tokens of a prompt are in the cache; None while a long step keeps the engine from telling."""
        pong = await self.engine.usage(USAGE_TIMEOUT_S, input_ids)
        return None if pong is None else pong.cached_tokens

    async def _one_token(self, model: ModelText) -> None:
        request_id = f"health-{next(self._health_ids)}"
        submit = Submit(
            request_id,
            [model.stop_ids[0] if model.stop_ids else 0],
            1,
            [],
            Sampling(temperature=0.0),
            model.tokenizer.num_tokens,
        )
        async for message in self.engine.generate([submit]):
            if isinstance(message, Finished) and message.reason == "error":
                raise EngineError(message.message or "the engine failed")
            if isinstance(message, Tokens):
                continue

    async def _load(self, name: str, path: Path, options: EngineOptions) -> None:
        load = load_message(path, options)
        try:
            plan = await asyncio.to_thread(self._check, load)
            self.board.update(plan=plan)
            self._model = await asyncio.to_thread(self._open_text, name, path)
            if (template := self._model.template) is not None:
                self._show_template(name, template)
            await self._show_origin(self._model)
            if load.draft not in (FROM_CONTEXT, NO_DRAFT):
                await asyncio.to_thread(self._check_draft, self._model, Path(load.draft))
        except QLocalError as error:
            log.error("%s cannot be loaded: %s", name, error)
            self.board.update(state=EngineState.FAILED, error=str(error), progress=None)
            return
        except Exception as error:  # a mistake of ours must not leave everyone waiting for a load that never ends
            log.exception("%s cannot be loaded", name)
            self.board.update(state=EngineState.FAILED, error=f"an internal error: {error!r}", progress=None)
            return
        await self.engine.load(load)

    def _show_template(self, name: str, template: Template) -> None:
        if self._templates is not None:
            template = self._templates.look_at(template)
        if template.is_new:
            log.warning(
                "%s: its chat template is not among those known (SHA-256 %s…): `qlocal template show %s` prints it",
                name,
                template.sha256[:12],
                name,
            )
        self.board.update(template=template)

    async def _show_origin(self, model: ModelText) -> None:
        """Tell what makes an answer of this model be the same again: before it is ready, so that no answer lacks it."""
        try:
            weights = await asyncio.to_thread(content_identity, model.files) if model.files else None
        except OSError as error:
            log.warning("%s: which weights its files hold cannot be told: %s", model.name, error)
            weights = None
        self.board.update(weights=weights, sampling=told(default_sampling(model.defaults)))

    def _check_draft(self, model: ModelText, path: Path) -> None:
        """Raise UsageError when a draft model speaks of other tokens."""
        draft = self._open_text(display_name(path), path)
        require_same_tokens(model.tokenizer, draft.tokenizer, model.name, draft.name)

    async def _stop_loading(self) -> None:
        if self._loading is not None:
            # Not cancelled: the thread that reads the headers could not be, and it takes a second at most.
            await asyncio.wait([self._loading])
            self._loading = None


def _with_request(running: EngineOptions, started: EngineOptions, request: LoadRequest) -> EngineOptions:
    """Return `running` with what the request names; null takes back what the server was started with."""
    changes: dict[str, Any] = {}
    # A field that nobody knows counts as set, too, and is let pass as everywhere.
    for name in (request.model_fields_set & LoadRequest.model_fields.keys()) - {"model"}:
        value = getattr(request, name)
        try:
            if name == "kv" and value is not None:
                kv_types(value)
            elif name == "devices" and value is not None:
                value = device_list(value)
        except ValueError as error:
            raise RequestError(f"{name}: {error}", param=name) from error
        changes[name] = getattr(started, name) if value is None else value
    return replace(running, **changes)


def load_message(path: Path, options: EngineOptions) -> Load:
    """Return what a rank is told to load."""
    return Load(
        path=str(path),
        devices=list(options.devices),
        max_context=options.max_context,
        slots=options.slots,
        dtype=options.dtype,
        kernels=options.kernels,
        threads=options.threads,
        max_memory=options.max_memory,
        head=options.head or STORED,
        kv=options.kv,
        offload=options.offload,
        prefill_chunk=options.prefill_chunk,
        card_reserve=options.card_reserve,
        split=options.split,
        nodes=options.nodes,
        draft=options.draft or FROM_CONTEXT,
        sessions_folder=None if options.sessions is None else str(options.sessions),
        sessions_bytes=options.sessions_bytes,
        host_cache_bytes=options.host_cache_bytes,
    )
