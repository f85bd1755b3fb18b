"""How tokens are chosen: what a request asks for, over what the model's makers recommend, over our own defaults."""

from __future__ import annotations

from dataclasses import replace

from qlocal.errors import RequestError
from qlocal.formats.base import GenerationDefaults
from qlocal.protocol import Sampling
from qlocal.server.requests import Options
from qlocal.server.text import ModelText

FALLBACK_TEMPERATURE = 0.7
FALLBACK_TOP_P = 0.95
"""For models whose makers recommend nothing: OpenAI's default of 1.0 makes small 4-bit models ramble."""
FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""The fields of a request that may be left to the model's makers."""


def sampling_of(request: Options, model: ModelText, num_logprobs: int | None) -> Sampling:
    """Return a request's sampling; RequestError for a bias of a token that there is not."""
    num_tokens = model.tokenizer.num_tokens
    if wrong := next((i for i in request.biases if i >= num_tokens), None):
        raise RequestError(f"logit_bias names the token {wrong}, expected ids below {num_tokens}", param="logit_bias")
    asked = {name: value for name in FIELDS if (value := getattr(request, name)) is not None}
    sampling = replace(default_sampling(model.defaults), **asked)
    return replace(sampling, seed=request.seed, logit_bias=request.biases, top_logprobs=num_logprobs)


def default_sampling(makers: GenerationDefaults) -> Sampling:
    """Return how tokens are chosen where a request says nothing."""
    silent = makers.temperature is None and makers.top_p is None and makers.top_k is None

    def recommended(value: float | None, ours: float) -> float:
        return ours if value is None else value

    return Sampling(
        temperature=recommended(makers.temperature, FALLBACK_TEMPERATURE if silent else 1.0),
        top_k=makers.top_k,
        top_p=recommended(makers.top_p, FALLBACK_TOP_P if silent else 1.0),
        repetition_penalty=recommended(makers.repetition_penalty, 1.0),
    )


def told(sampling: Sampling) -> dict[str, float]:
    """Return by name the fields of a request that would ask for this."""
    return {name: value for name in FIELDS if (value := getattr(sampling, name)) is not None}
