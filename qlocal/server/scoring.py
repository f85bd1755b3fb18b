"""What our own clients ask about tokens: the ids of a text, and how likely the model finds an answer."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from qlocal.errors import EngineError, RequestError
from qlocal.protocol import Finished, Sampling, Started, Submit, TokenLogprobs
from qlocal.server import references
from qlocal.server.engine_client import EngineClient
from qlocal.server.jobs import Prompts
from qlocal.server.own_requests import ScoreRequest, TokenizeRequest
from qlocal.server.shapes import Envelope, Json


async def tokens(request: TokenizeRequest, prompts: Prompts) -> Json:
    """Return the tokens of a text or of a conversation."""
    if request.messages is not None:
        ids = await prompts.encode_chat(request.messages)
    elif request.control:
        ids = await prompts.encode(request.text or "", "text")
    else:
        ids = await prompts.encode_plain(request.text or "", "text")
    envelope = Envelope("", prompts.model)
    return {"model": prompts.model.name, "token_ids": ids, "tokens": [envelope.token(i) for i in ids]}


async def scores(request: ScoreRequest, prompts: Prompts, engine: EngineClient) -> Json:
    """Return the log probability of every token of an answer, by reading prompt and answer once."""
    prompt_ids, answer_ids = await _ids(request, prompts)
    length = len(prompt_ids) + len(answer_ids)
    if length > prompts.max_context:
        raise RequestError(
            f"prompt and answer have {length} tokens, and this model's maximum context length is {prompts.max_context}",
            param="answer" if request.answer is not None else "answer_ids",
            code="context_length_exceeded",
        )
    envelope = Envelope(f"score-{uuid.uuid4().hex}", prompts.model)
    vocabulary = prompts.model.tokenizer.num_tokens
    against = None if request.against is None else await asyncio.to_thread(references.find, request.against)
    name, kept = await asyncio.to_thread(references.new, len(answer_ids), vocabulary) if request.keep else (None, None)
    started = await read(
        engine,
        Submit(
            envelope.request_id,
            prompt_ids + answer_ids,
            max_tokens=0,
            stop_ids=[],
            sampling=Sampling(top_logprobs=request.top_logprobs),
            num_tokens=vocabulary,
            scored_from=len(prompt_ids),
            keep_rows=None if kept is None else str(kept),
            against_rows=None if against is None else str(against),
        ),
    )
    return {
        "id": envelope.request_id,
        "object": "qlocal.score",
        "model": prompts.model.name,
        "prompt_tokens": len(prompt_ids),
        "cached_tokens": started.cached_tokens,
        "tokens": [envelope.scored(token) | _distances(token) for token in started.prompt_logprobs],
        **({} if name is None else {"reference": name}),
    }


def _distances(token: TokenLogprobs) -> Json:
    return {} if token.kl is None else {"kl": token.kl, "kl_reverse": token.kl_reverse}


async def _ids(request: ScoreRequest, prompts: Prompts) -> tuple[list[int], list[int]]:
    if request.messages is not None:
        prompt_ids = await prompts.encode_chat(request.messages)
    else:
        prompt_ids = prompts.checked_ids(request.prompt_ids or [], "prompt_ids")
    if request.answer is not None:
        return prompt_ids, await prompts.encode_answer(request.answer, "answer")
    return prompt_ids, prompts.checked_ids(request.answer_ids or [], "answer_ids")


async def read(engine: EngineClient, submit: Submit) -> Started:
    """Have the engine read a prompt; what may follow is of no interest."""
    started = None
    async with contextlib.aclosing(engine.generate([submit])) as messages:
        async for message in messages:
            if isinstance(message, Started):
                started = message
            elif isinstance(message, Finished) and message.reason != "length":
                raise EngineError(message.message or "the engine cancelled the reading")
    assert started is not None, "a sequence that ends by its length has been read"
    return started
