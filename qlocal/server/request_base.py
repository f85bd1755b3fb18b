"""What all request bodies share: strictness, limits on texts, and problems told by the field's name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlocal.errors import RequestError

log = logging.getLogger(__name__)

Text = Annotated[str, Field(max_length=8 << 20)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 24)]


UNSUPPORTED = {
    "functions": "function calls",
    "function_call": "function calls",
    "audio": "audio output",
    "prediction": "predicted output",
    "web_search_options": "web search",
    "chat_template": "templates in a request",
    "chat_template_kwargs": "template arguments in a request",
    "best_of": "choosing the best of several completions",
    "prompt_embeds": "prompts as embeddings",
    **dict.fromkeys(
        (
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "structured_outputs",
            "grammar",
            "json_schema",
        ),
        "formats of answers, other than by response_format,",
    ),
}
"""Known fields that are refused unless empty, with what they would mean."""

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "reasoning_effort",
        "service_tier",
        "verbosity",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
"""Accepted without effect: they describe the caller, or a wish that this server fulfils anyway."""


class Body(BaseModel):
    """A JSON object whose values have exactly the stated types; unknown keys are kept aside."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


BodyT = TypeVar("BodyT", bound=Body)


def validate(kind: type[BodyT], raw: Mapping[str, Any]) -> BodyT:
    """Return `raw` as a checked request; RequestError (400) names the first field that is wrong."""
    _refuse_unsupported(raw)
    try:
        body = kind.model_validate(raw)
    except ValidationError as error:
        raise _first_problem(error) from error
    if unknown := sorted((body.model_extra or {}).keys() - IGNORED - UNSUPPORTED.keys()):
        log.warning("ignored unknown request fields: %s", ", ".join(repr(name[:64]) for name in unknown[:16]))
    return body


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    for name, meaning in UNSUPPORTED.items():
        harmless: tuple[Any, ...] = (None, "", [], {}) if name != "best_of" else (None, raw.get("n") or 1)
        if name in raw and raw[name] not in harmless:
            raise RequestError(f"{name} is not supported: {meaning} cannot be asked for here", param=name)


def _first_problem(error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    path = [part for part in problem["loc"] if not _is_variant(part)]
    param = ".".join(str(part) for part in path)
    reason = problem["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if param == "messages" and problem["type"] == "too_short":
        return RequestError("messages is empty, expected at least one message", param="messages")
    if problem["type"] == "missing":
        return RequestError(f"{param} is missing", param=param)
    value = repr(problem["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    return RequestError(f"{param} is {shown}: {reason}" if param else reason, param=param or None)


def _is_variant(part: int | str) -> bool:
    """Whether pydantic means a member of a union (`list[constrained-str]`) and not a field."""
    return isinstance(part, str) and (part in ("str", "constrained-str") or "[" in part)
