"""The document behind GET /openapi.json: requests as the validation has them, responses as clients read them.

Responses in the server's tests are held against it, so it says what is really sent.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

import qlocal
from qlocal.schema import EngineState
from qlocal.server import own_requests, requests
from qlocal.server.request_base import Body

Json = dict[str, Any]
REF = "#/components/schemas/{model}"
TEXT: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
BOOLEAN: Json = {"type": "boolean"}
ANYTHING: Json = {}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(*values: str | None) -> Json:
    return {"enum": list(values)}


def _list(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def _map(schema: Json) -> Json:
    return {"type": "object", "additionalProperties": schema}


def _object(optional: Json | None = None, **required: Json) -> Json:
    """Return the schema of an object; fields in `optional` need not be there."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _ref(name: str) -> Json:
    return {"$ref": REF.format(model=name)}


ERROR = _object(error=_object(message=TEXT, type=TEXT, param=_or_null(TEXT), code=_or_null(TEXT)))
TOKEN = _object(id=INTEGER, token=TEXT, bytes=_list(INTEGER))
LIKELY_TOKEN = _object(id=INTEGER, token=TEXT, logprob=NUMBER, bytes=_list(INTEGER))
SCORED_TOKEN = _object(
    {"kl": NUMBER, "kl_reverse": NUMBER},
    **LIKELY_TOKEN["properties"],
    top_logprobs=_list(LIKELY_TOKEN),
)
SPEED = _object(
    **dict.fromkeys(("prefill_s", "decode_s", "tokens_per_s"), NUMBER),
    **dict.fromkeys(("cached_tokens", "max_context", "restored_tokens", "left_out_tokens"), INTEGER),
    **dict.fromkeys(("drafted_tokens", "accepted_tokens"), INTEGER),
)
USAGE = _object(
    prompt_tokens=INTEGER,
    completion_tokens=INTEGER,
    total_tokens=INTEGER,
    prompt_tokens_details=_object(cached_tokens=INTEGER),
    qlocal=SPEED,
)
FINISH = _one_of("stop", "length", "tool_calls")
CHAT_LOGPROBS = _object(content=_list(SCORED_TOKEN), refusal={"type": "null"})
TEXT_LOGPROBS = _object(
    tokens=_list(TEXT),
    token_logprobs=_list(_or_null(NUMBER)),
    top_logprobs=_list(_or_null(_map(NUMBER))),
    text_offset=_list(INTEGER),
)
TOKEN_IDS = {"token_ids": _list(INTEGER)}
TOOL_CALL = _object(id=TEXT, type=_one_of("function"), function=_object(name=TEXT, arguments=TEXT))
TOOL_CALL_DELTA = _object(
    {"id": TEXT, "type": _one_of("function")}, index=INTEGER, function=_object({"name": TEXT}, arguments=TEXT)
)
MESSAGE = _object(
    {"tool_calls": _list(TOOL_CALL)}, role=_one_of("assistant"), content=_or_null(TEXT), refusal={"type": "null"}
)
DELTA = _object({"role": _one_of("assistant"), "content": TEXT, "tool_calls": _list(TOOL_CALL_DELTA)})


def _envelope(kind: str, choice: Json, optional: Json | None = None, **required: Json) -> Json:
    return _object(
        optional,
        id=TEXT,
        object=_one_of(kind),
        created=INTEGER,
        model=TEXT,
        system_fingerprint=TEXT,
        choices=_list(choice),
        **required,
    )


def _choice(finish: Json, logprobs: Json, **fields: Json) -> Json:
    return _object(TOKEN_IDS, index=INTEGER, logprobs=_or_null(logprobs), finish_reason=finish, **fields)


IN_STREAM = {"usage": _or_null(USAGE)}
STATUS = _object(
    state=_one_of(*(state.value for state in EngineState)),
    version=TEXT,
    pid=INTEGER,
    model=_or_null(TEXT),
    path=_or_null(TEXT),
    error=_or_null(TEXT),
    max_context=_or_null(INTEGER),
    progress=_or_null(_object(stage=TEXT, done=INTEGER, total=INTEGER, layers=_map(_list(INTEGER)))),
    plan=_or_null({"type": "object"}),
    template=_or_null(_object(sha256=TEXT, known_as=_or_null(TEXT), is_new=BOOLEAN)),
    held_head=_or_null(_object(type=TEXT, loss=NUMBER, stored_bytes=INTEGER, held_bytes=INTEGER)),
    used=_or_null(_map(INTEGER)),
    in_flight=INTEGER,
    weights=_or_null(TEXT),
    sampling=_or_null(_map(NUMBER)),
)
SAVED_SESSION = _object(name=TEXT, model=TEXT, tokens=INTEGER, saved_at=INTEGER)
VARIANT = _object(
    **dict.fromkeys(("name", "path", "format"), TEXT),
    bytes=INTEGER,
    is_loaded=BOOLEAN,
    is_same_size=BOOLEAN,
)
ENGINE_USAGE = _object(**dict.fromkeys(("running", "waiting", "free_blocks", "total_blocks"), INTEGER))
MODEL = _object(
    id=TEXT,
    object=_one_of("model"),
    created=INTEGER,
    owned_by=TEXT,
    context_length=_or_null(INTEGER),
    max_model_len=_or_null(INTEGER),
)
RESPONSES: dict[str, Json] = {
    "Error": ERROR,
    "Health": _object(status=_one_of("ok"), model=TEXT, engine=_or_null(ENGINE_USAGE)),
    "Model": MODEL,
    "Models": _object(object=_one_of("list"), data=_list(MODEL)),
    "ChatCompletion": _envelope("chat.completion", _choice(FINISH, CHAT_LOGPROBS, message=MESSAGE), usage=USAGE),
    "ChatCompletionChunk": _envelope(
        "chat.completion.chunk", _choice(_or_null(FINISH), CHAT_LOGPROBS, delta=DELTA), IN_STREAM
    ),
    "Completion": _envelope("text_completion", _choice(FINISH, TEXT_LOGPROBS, text=TEXT), usage=USAGE),
    "CompletionChunk": _envelope("text_completion", _choice(_or_null(FINISH), TEXT_LOGPROBS, text=TEXT), IN_STREAM),
    "Status": STATUS,
    "Count": _object(prompt_tokens=INTEGER, max_context=INTEGER, cached_tokens=_or_null(INTEGER)),
    "Tokens": _object(model=TEXT, token_ids=_list(INTEGER), tokens=_list(TOKEN)),
    "Scores": _object(
        {"reference": TEXT},
        id=TEXT,
        object=_one_of("qlocal.score"),
        model=TEXT,
        prompt_tokens=INTEGER,
        cached_tokens=INTEGER,
        tokens=_list(SCORED_TOKEN),
    ),
    "Plan": _object(plan={"type": "object"}, table=_list(TEXT), notes=_list(TEXT)),
    "Variants": _object(variants=_list(VARIANT)),
    "Sessions": _object(folder=_or_null(TEXT), files=INTEGER, bytes=INTEGER, saved=_list(SAVED_SESSION)),
    "Session": _object(name=TEXT, model=TEXT, tokens=INTEGER, cached_tokens=INTEGER, restored_tokens=INTEGER),
}
REQUESTS: tuple[type[Body], ...] = (
    requests.ChatRequest,
    requests.CompletionRequest,
    requests.EmbeddingRequest,
    own_requests.LoadRequest,
    own_requests.CountRequest,
    own_requests.TokenizeRequest,
    own_requests.ScoreRequest,
    own_requests.SaveRequest,
)


@cache
def document() -> Json:
    """Return the OpenAPI 3.1 document of all routes."""
    _, definitions = models_json_schema([(kind, "validation") for kind in REQUESTS], ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qlocal", "version": qlocal.__version__},
        "paths": _paths(),
        "components": {
            "schemas": definitions["$defs"] | RESPONSES,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _paths() -> Json:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    stop = {"summary": "End the server", "operationId": "stop", "responses": _answers("Status", 202)}
    return {
        "/health": {"get": _get("Whether the engine gives tokens", "Health")},
        "/openapi.json": {"get": _get("This document", None)},
        "/v1/models": {"get": _get("What is loaded", "Models")},
        "/v1/models/{name}": {"get": _get("One model", "Model") | {"parameters": [name]}},
        "/v1/chat/completions": {"post": _post("Answer a conversation", "ChatRequest", "ChatCompletion", streams=True)},
        "/v1/completions": {"post": _post("Go on with a text", "CompletionRequest", "Completion", streams=True)},
        "/v1/embeddings": {"post": _post("Always refused: no model here embeds", "EmbeddingRequest", None)},
        "/qlocal/status": {"get": _get("The engine's state", "Status")},
        "/qlocal/events": {"get": _get("Every change of the state, as server-sent events", None, "text/event-stream")},
        "/qlocal/load": {"post": _post("Load a model", "LoadRequest", "Status", 202)},
        "/qlocal/plan": {"post": _post("What loading a model would take", "LoadRequest", "Plan")},
        "/qlocal/variants": {"get": _get("Checkpoints that have the loaded model's tokens", "Variants")},
        "/qlocal/count": {"post": _post("Count a conversation's tokens", "CountRequest", "Count")},
        "/qlocal/tokenize": {"post": _post("The tokens of a text", "TokenizeRequest", "Tokens")},
        "/qlocal/score": {"post": _post("How likely an answer is", "ScoreRequest", "Scores")},
        "/qlocal/sessions": {
            "get": _get("What is kept of conversations on disk", "Sessions"),
            "delete": _get("Remove what is kept", "Sessions"),
            "post": _post("Keep a prompt under a name", "SaveRequest", "Session"),
        },
        "/qlocal/sessions/{name}": {
            "post": {
                "summary": "Bring a saved prompt back, or say what differs",
                "operationId": "restore",
                "parameters": [name],
                "responses": _answers("Session"),
            },
            "delete": _get("Keep a saved prompt no longer", "Sessions") | {"parameters": [name]},
        },
        "/qlocal/stop": {"post": stop},
    }


def _get(summary: str, response: str | None, media_type: str = "application/json") -> Json:
    return {"summary": summary, "responses": _answers(response, media_type=media_type)}


def _post(summary: str, request: str, response: str | None, status: int = 200, streams: bool = False) -> Json:
    body = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    answers = {} if response is None else _answers(response, status)
    if streams:
        # Every event holds a chunk, an error, or [DONE] at the end.
        chunk = {"schema": TEXT, "x-event": {"anyOf": [_ref(f"{response}Chunk"), _ref("Error")]}}
        answers[str(status)]["content"]["text/event-stream"] = chunk
    return {"summary": summary, "requestBody": body, "responses": answers | _errors()}


def _answers(response: str | None, status: int = 200, media_type: str = "application/json") -> Json:
    schema = _ref(response) if response is not None else ANYTHING
    answer = {"description": "The answer", "content": {media_type: {"schema": schema}}}
    return {str(status): answer} | _errors()


def _errors() -> Json:
    error = {"description": "Refused or failed", "content": {"application/json": {"schema": _ref("Error")}}}
    return {"4XX": error, "503": error}
