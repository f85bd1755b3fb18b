"""Requests made into jobs for the engine: prompts encoded, limits and sampling settled, everything refused by name."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Sequence

from qlocal.errors import RequestError, TokenizerError
from qlocal.server.answer_format import grammar_of
from qlocal.server.chat_messages import ChatMessage
from qlocal.server.generation import Job, OfferedTools
from qlocal.server.requests import ChatRequest, CompletionRequest
from qlocal.server.sampling import sampling_of
from qlocal.server.text import ModelText
from qlocal.server.tools import Tool
from qlocal.server.truncate import Cut, Encode, cut_middle

ANSWER_TOKENS = 1024
"""Room that is left for an answer when a prompt is cut, if nobody says how long it may be."""


class Prompts:
    """Makes prompts and jobs for one model and its context of `max_context` tokens."""

    def __init__(self, model: ModelText, max_context: int) -> None:
        self.model = model
        self.max_context = max_context

    async def chat_job(self, request: ChatRequest) -> Job:
        """Render and encode a conversation. RequestError with param `messages` for what its template refuses."""
        messages, begun = request.messages, await self._begun_answer(request)
        tools = self._tools(request)
        grammar = await grammar_of(request, tools, self.model)
        if request.continue_final_message:
            messages = messages[:-1]

        async def encode(messages: Sequence[ChatMessage]) -> list[int]:
            return await self.encode_chat(messages, tools) + begun

        cut = Cut(await encode(messages))
        if request.truncate == "middle":
            room = self.max_context - (request.limit or min(ANSWER_TOKENS, self.max_context // 4))
            cut = await _without_middle(messages, cut.ids, room, encode)
        sampling = sampling_of(request, self.model, request.num_logprobs)
        limits = [self.limit(cut.ids, request.limit, "messages")]
        return Job(
            f"chatcmpl-{uuid.uuid4().hex}",
            [cut.ids],
            limits,
            sampling,
            request.n or 1,
            request.stops,
            left_out=cut.left_out,
            num_begun=len(begun),
            grammar=grammar,
            tools=self._offered(request, tools),
        )

    async def completion_job(self, request: CompletionRequest) -> Job:
        """Encode raw prompts."""
        if request.suffix:
            prompts = [await self._around(str(prompt), request.suffix) for prompt in request.prompts]
        else:
            prompts = [
                await self.encode(p) if isinstance(p, str) else self.checked_ids(p, "prompt") for p in request.prompts
            ]
        limits = [self.limit(ids, request.max_tokens, "prompt") for ids in prompts]
        sampling = sampling_of(request, self.model, request.logprobs)
        job_id = f"cmpl-{uuid.uuid4().hex}"
        fills = self.model.tokenizer.fill_in if request.suffix else None
        return Job(
            job_id,
            prompts,
            limits,
            sampling,
            request.n or 1,
            request.stops,
            echo=bool(request.echo),
            stop_ids=() if fills is None else fills.stop_ids,
        )

    async def _around(self, prompt: str, suffix: str) -> list[int]:
        """Return the ids that ask for what stands between two texts; control tokens in these stay text."""
        fill_in = self.model.tokenizer.fill_in
        if fill_in is None:
            raise RequestError(
                f"suffix is not supported by '{self.model.name}': its vocabulary has no tokens for filling in",
                param="suffix",
                code="suffix_unsupported",
            )
        before = await self.encode_plain(prompt, "prompt")
        after = await self.encode_plain(suffix, "suffix")
        return [*fill_in.begin_ids, fill_in.prefix_id, *before, fill_in.suffix_id, *after, fill_in.middle_id]

    async def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> list[int]:
        """Return the ids of a conversation, ready for its answer."""
        plain = [tool.plain() for tool in tools] or None
        ids = self.model.encode_chat([message.plain() for message in messages], plain)
        return await _told(ids, "messages", "template_error")

    async def encode(self, text: str, param: str = "prompt") -> list[int]:
        """Return the ids of a raw prompt, control tokens included."""
        return await _told(self.model.encode(text), param)

    async def encode_plain(self, text: str, param: str) -> list[int]:
        """Return the ids of a text by itself."""
        return await _told(self.model.encode_plain(text), param)

    async def encode_answer(self, text: str, param: str) -> list[int]:
        """Return the ids of an answer, or of its beginning, as the model would write it."""
        return await _told(self.model.encode_answer(text), param)

    def checked_ids(self, ids: list[int], param: str) -> list[int]:
        """Return ids that a client sent; RequestError for one without a token."""
        num_tokens = self.model.tokenizer.num_tokens
        if wrong := next((i for i in ids if i >= num_tokens), None):
            raise RequestError(f"{param} holds the token id {wrong}, expected ids below {num_tokens}", param=param)
        return ids

    def limit(self, ids: list[int], wanted: int | None, param: str) -> int:
        """Return how many tokens may follow; a wish beyond the context ends there with reason `length`."""
        room = self.max_context - len(ids)
        if not ids:
            raise RequestError(f"{param} is empty: it has no tokens", param=param)
        if room < 1:
            raise RequestError(
                # Clients look for these words to know that a conversation has become too long.
                f"the prompt has {len(ids)} tokens, and this model's maximum context length is {self.max_context}",
                param=param,
                code="context_length_exceeded",
                hint="Shorten it, load the model with a larger context, or ask to truncate the middle.",
            )
        return room if wanted is None else min(wanted, room)

    def _tools(self, request: ChatRequest) -> list[Tool]:
        """Return the tools that the model is told of."""
        tools = request.offered_tools
        if tools and self.model.tool_format is None:
            raise RequestError(
                f"tools are not supported by '{self.model.name}': its chat template takes none, or writes calls "
                "in a way that is not known here",
                param="tools",
                code="tools_unsupported",
            )
        return tools

    def _offered(self, request: ChatRequest, tools: Sequence[Tool]) -> OfferedTools | None:
        if not tools or self.model.tool_format is None:
            return None
        names = [tool.function.name for tool in tools]
        return OfferedTools(self.model.tool_format, names, request.parallel_tool_calls is not False)

    async def _begun_answer(self, request: ChatRequest) -> list[int]:
        """Return the ids of the answer that is to be continued: they are what the model would have written itself,
        which a template's view of a finished answer need not be."""
        if request.answer_start_ids is not None:
            ids = self.checked_ids(request.answer_start_ids, "answer_start_ids")
            if stop := next((i for i in ids if i in self.model.stop_ids), None):
                raise RequestError(f"answer_start_ids holds {stop}, which ends an answer", param="answer_start_ids")
            return ids
        if request.continue_final_message:
            return await self.encode_answer(request.messages[-1].text, "messages")
        return []


async def _told(ids: Awaitable[list[int]], param: str, code: str | None = None) -> list[int]:
    """Return what the guard makes of a text; what it refuses is the request's fault."""
    try:
        return await ids
    except TokenizerError as error:
        raise RequestError(str(error), param=param, code=code) from error


async def _without_middle(messages: Sequence[ChatMessage], ids: list[int], room: int, encode: Encode) -> Cut:
    """Return a prompt that leaves room for its answer. RequestError where one message's middle is not enough."""
    cut = await cut_middle(messages, ids, room, encode)
    if cut is None:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, and without the middle of its longest message still more than {room}",
            param="messages",
            code="context_length_exceeded",
            hint="Shorten the other messages, or ask for a shorter answer.",
        )
    return cut
