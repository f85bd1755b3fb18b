"""Asks a running server what the well-known clients ask, with those clients themselves. Run by `scripts/clients`.

    python scripts/client_checks.py http://127.0.0.1:PORT/v1 TOKEN MODEL

Prints a line a check; exit code 1 where one fails. Needs openai, langchain-openai and litellm.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL, TOKEN, MODEL = sys.argv[1:4]
SCHEMA = {
    "title": "Dog",
    "type": "object",
    "properties": {"kind": {"enum": ["lazy", "quick"]}, "legs": {"type": "integer", "minimum": 3, "maximum": 4}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "Dog", "schema": SCHEMA, "strict": True}}
TOOL = {"type": "function", "function": {"name": "walk", "description": "Walk a dog.", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "walk"}}
MESSAGES = [{"role": "user", "content": "hello dog"}]


def is_dog(value: dict[str, Any]) -> None:
    assert value["kind"] in ("lazy", "quick") and value["legs"] in (3, 4), value


def openai_checks() -> dict[str, Callable[[], None]]:
    from openai import BadRequestError, NotFoundError, OpenAI
    from pydantic import BaseModel

    client = OpenAI(base_url=URL, api_key=TOKEN, max_retries=0)
    create = client.chat.completions.create

    def models() -> None:
        (model,) = client.models.list()
        assert model.id == MODEL and client.models.retrieve(MODEL).id == MODEL

    def whole() -> None:
        answer = create(model=MODEL, messages=MESSAGES, max_tokens=8, seed=1, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def streamed() -> None:
        options = {"include_usage": True}
        chunks = list(create(model=MODEL, messages=MESSAGES, max_tokens=8, seed=1, stream=True, stream_options=options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == create(model=MODEL, messages=MESSAGES, max_tokens=8, seed=1).choices[0].message.content
        assert chunks[-1].usage.completion_tokens == 8 and not chunks[-1].choices

    def logprobs() -> None:
        answer = create(model=MODEL, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=3)
        tokens = answer.choices[0].logprobs.content
        assert len(tokens) == 4 and all(len(t.top_logprobs) == 3 and t.bytes is not None for t in tokens)

    def schema() -> None:
        answer = create(model=MODEL, messages=MESSAGES, response_format=FORMAT)
        assert answer.choices[0].finish_reason == "stop"
        is_dog(json.loads(answer.choices[0].message.content))

    def parsed() -> None:
        class Answer(BaseModel):
            count: int
            is_lazy: bool

        answer = client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Answer, seed=3)
        assert isinstance(answer.choices[0].message.parsed, Answer)

    def tools() -> None:
        for choice in ("required", NAMED):
            answer = create(model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
            (call,) = answer.choices[0].message.tool_calls
            assert call.function.name == "walk" and answer.choices[0].finish_reason == "tool_calls"
            is_dog(json.loads(call.function.arguments))
        result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
        messages = [*MESSAGES, answer.choices[0].message.model_dump(exclude_none=True), result]
        create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=4)

    def streamed_tools() -> None:
        asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
        with client.chat.completions.stream(model=MODEL, messages=MESSAGES, **asked) as stream:
            final = stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls
        assert final.choices[0].finish_reason == "tool_calls"
        is_dog(json.loads(call.function.arguments))

    def completions() -> None:
        answer = client.completions.create(model=MODEL, prompt="once", echo=True, max_tokens=2, logprobs=2)
        assert answer.choices[0].text.startswith("once") and answer.choices[0].logprobs.tokens

    def refusals() -> None:
        for error, ask in (
            (NotFoundError, lambda: create(model="gpt-4", messages=MESSAGES)),
            (BadRequestError, lambda: create(model=MODEL, messages=[])),
            (BadRequestError, lambda: client.embeddings.create(model=MODEL, input="a")),
            (BadRequestError, lambda: create(model=MODEL, messages=[{"role": "user", "content": "dog " * 200_000}])),
        ):
            try:
                ask()
            except error:
                continue
            raise AssertionError(f"no {error.__name__}")

    return {f.__name__: f for f in (models, whole, streamed, logprobs, schema, parsed, tools, streamed_tools)} | {
        "completions": completions,
        "refusals": refusals,
    }


def langchain_checks() -> dict[str, Callable[[], None]]:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=MODEL, base_url=URL, api_key=TOKEN, max_retries=0, seed=1, max_tokens=300)

    def whole() -> None:
        answer = chat.invoke("hello dog", max_tokens=8)
        assert answer.usage_metadata["output_tokens"] == 8
        assert answer.response_metadata["finish_reason"] == "length"

    def streamed() -> None:
        chunks = list(chat.stream("hello dog", max_tokens=8, stream_usage=True))
        assert sum((c.usage_metadata or {}).get("output_tokens", 0) for c in chunks) == 8
        assert "".join(c.content for c in chunks) == chat.invoke("hello dog", max_tokens=8).content

    def logprobs() -> None:
        answer = chat.bind(logprobs=True, top_logprobs=2).invoke("hello dog", max_tokens=3)
        assert len(answer.response_metadata["logprobs"]["content"]) == 3

    def tools() -> None:
        for choice in ("any", "walk"):
            answer = chat.bind_tools([TOOL], tool_choice=choice, parallel_tool_calls=False).invoke("hello dog")
            (call,) = answer.tool_calls
            assert call["name"] == "walk"
            is_dog(call["args"])

    def streamed_tools() -> None:
        bound = chat.bind_tools([TOOL], tool_choice="any", strict=True, parallel_tool_calls=False)
        total = None
        for chunk in bound.stream("hello dog"):
            total = chunk if total is None else total + chunk
        (call,) = total.tool_calls
        is_dog(call["args"])

    def schema() -> None:
        for method in ("json_schema", "function_calling"):
            is_dog(chat.with_structured_output(SCHEMA, method=method, strict=True).invoke("hello dog"))

    return {f.__name__: f for f in (whole, streamed, logprobs, tools, streamed_tools, schema)}


def litellm_checks() -> dict[str, Callable[[], None]]:
    import litellm

    def ask(**fields: Any) -> Any:
        values = {"messages": MESSAGES, "seed": 1, "max_tokens": 300, "num_retries": 0, **fields}
        return litellm.completion(model=f"openai/{MODEL}", api_base=URL, api_key=TOKEN, **values)

    def whole() -> None:
        answer = ask(max_tokens=8)
        assert answer.usage.completion_tokens == 8 and answer.choices[0].finish_reason == "length"

    def streamed() -> None:
        chunks = list(ask(max_tokens=8, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == ask(max_tokens=8).choices[0].message.content
        assert any(getattr(c, "usage", None) and c.usage.completion_tokens == 8 for c in chunks)

    def logprobs() -> None:
        content = ask(max_tokens=3, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        assert len(content) == 3

    def tools() -> None:
        answer = ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        (call,) = answer.choices[0].message.tool_calls
        is_dog(json.loads(call.function.arguments))

    def streamed_tools() -> None:
        chunks = list(ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True))
        whole = litellm.stream_chunk_builder(chunks)
        assert whole.choices[0].finish_reason == "tool_calls"
        is_dog(json.loads(whole.choices[0].message.tool_calls[0].function.arguments))

    def schema() -> None:
        is_dog(json.loads(ask(response_format=FORMAT).choices[0].message.content))

    def too_long() -> None:
        try:
            ask(messages=[{"role": "user", "content": "dog " * 200_000}])
        except litellm.ContextWindowExceededError:
            return
        raise AssertionError("it is not recognised as a context that is exceeded")

    return {f.__name__: f for f in (whole, streamed, logprobs, tools, streamed_tools, schema, too_long)}


def main() -> int:
    failed = 0
    for name, checks in (
        ("openai", openai_checks()),
        ("langchain", langchain_checks()),
        ("litellm", litellm_checks()),
    ):
        for check, run in checks.items():
            try:
                run()
                print(f"{name:10} {check:16} holds", flush=True)
            except Exception:
                failed += 1
                print(f"{name:10} {check:16} FAILS", flush=True)
                traceback.print_exc()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
