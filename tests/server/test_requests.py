from __future__ import annotations

import logging
from typing import Any

import pytest

from qlocal.errors import RequestError
from qlocal.server.request_base import IGNORED, UNSUPPORTED, validate
from qlocal.server.requests import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "hi"}]

WRONG: list[tuple[str, Any]] = [
    *[("temperature", v) for v in (-0.1, 2.1, "1", True, [], float("inf"), float("nan"), 10**400)],
    *[("top_p", v) for v in (0, -1, 1.1, "x")],
    *[("top_k", v) for v in (0, -1, 1.5, 2**63, "4")],
    *[("min_p", v) for v in (-0.1, 1.1)],
    *[("repetition_penalty", v) for v in (0, -1, 11)],
    *[("presence_penalty", v) for v in (-2.1, 2.1)],
    *[("frequency_penalty", v) for v in (-2.1, 2.1)],
    *[("seed", v) for v in (1.5, 2**63, -(2**63) - 1, "7", True)],
    *[("n", v) for v in (0, -1, 9, 10**6, 1.0, "2", True)],
    *[("stop", v) for v in ("", [""], ["a"] * 5, [1], 3, {"a": 1}, "x" * 2000)],
    *[("stream", v) for v in (1, "true")],
    ("stream_options", {"include_usage": "yes"}),
    *[("logit_bias", v) for v in ({"a": 1}, {"-1": 1}, {"1.5": 1}, {"1": 101}, {"1": "x"}, {"9" * 11: 1}, [1])],
    *[("max_tokens", v) for v in (0, -1, 1.5, "3", 2**40, True)],
    *[("max_completion_tokens", v) for v in (0, -1)],
    *[("logprobs", v) for v in (1, "true")],
    *[("top_logprobs", v) for v in (-1, 21, 1.5, 3)],
    *[("response_format", v) for v in ({"type": "json_schema"}, {"type": "xml"}, "text", {})],
    *[("tool_choice", v) for v in ("required", "any", {"type": "function", "function": {"name": "f"}})],
    ("modalities", ["text", "audio"]),
    ("model", 3),
    *[("messages", v) for v in ([], None, "hi", [{}], [{"role": "user"}], [{"role": "king", "content": "x"}])],
    *[("messages", [{"role": "user", "content": v}]) for v in (3, {}, [{"type": "image_url"}], [{"type": "text"}])],
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda v: repr(v)[:30])
def test_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        validate(ChatRequest, {"messages": MESSAGES, field: value})
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(field)
    assert "\n" not in caught.value.message and len(caught.value.message) < 300


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_known_field_that_is_not_built_is_refused_unless_empty(field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} is not supported"):
        validate(ChatRequest, {"messages": MESSAGES, field: ["something"]})
    assert validate(ChatRequest, {"messages": MESSAGES, field: None})


def test_unknown_field_is_ignored_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        validate(ChatRequest, {"messages": MESSAGES, "wishes": 3, **dict.fromkeys(IGNORED, "x")})
    assert [record.message for record in caplog.records] == ["ignored unknown request fields: 'wishes'"]


def test_content_parts_are_joined_and_developer_speaks_as_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = validate(ChatRequest, {"messages": [{"role": "developer", "content": parts}]})
    assert request.messages[0].plain() == {"role": "system", "content": "ab"}


def test_arguments_of_earlier_tool_calls_become_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    request = validate(ChatRequest, {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert request.messages[0].plain()["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_the_smaller_limit_of_both_spellings_holds() -> None:
    request = validate(ChatRequest, {"messages": MESSAGES, "max_tokens": 9, "max_completion_tokens": 4})
    assert request.limit == 4


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompt_may_be_text_ids_or_a_list_of_either(prompt: Any, prompts: Any) -> None:
    assert validate(CompletionRequest, {"prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], None, [1, "a"], [-1], [2**40], {"a": 1}, [[1], "a"]])
def test_empty_or_mixed_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(RequestError) as caught:
        validate(CompletionRequest, {"prompt": prompt})
    assert (caught.value.param or "").startswith("prompt")
