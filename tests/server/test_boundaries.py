"""A table of values at and beyond the limits of every sampling field, each sent to a server that must survive it.

What is right is stated here a second time, by range and type, and not taken from the validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Running
from tests.server.test_chat import URL, ask
from tests.server.test_completions import URL as RAW

HUGE = 10**400
VALUES: list[Any] = [
    None,
    True,
    False,
    "1",
    "",
    [],
    [1],
    {},
    {"a": 1},
    -HUGE,
    HUGE,
    -(2**63),
    -1,
    0,
    1,
    2,
    3,
    8,
    9,
    20,
    21,
]
VALUES += [2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -2.0001, -2.0, -0.5, -0.0, 5e-324, 0.5, 1.0, 1.0001, 2.0, 2.0001]
VALUES += [10.0, 10.1, 1e308]
FLOATS: dict[str, tuple[float, bool, float]] = {  # lowest, whether it is allowed itself, highest
    "temperature": (0, True, 2),
    "top_p": (0, False, 1),
    "min_p": (0, True, 1),
    "repetition_penalty": (0, False, 10),
    "presence_penalty": (-2, True, 2),
    "frequency_penalty": (-2, True, 2),
}
INTEGERS = {
    "top_k": (1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, 8),
    "max_tokens": (1, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers() -> Iterator[tuple[str, Any, bool]]:
    for name, (low, closed, high) in FLOATS.items():
        for value in VALUES:
            in_range = is_number(value) and (low <= value if closed else low < value) and value <= high
            yield name, value, value is None or in_range
    for name, (low, high) in INTEGERS.items():
        for value in VALUES:
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            yield name, value, value is None or (is_integer and low <= value <= high)


def others() -> Iterator[tuple[str, Any, bool]]:
    for ids, good in [({}, True), ({"0": -100}, True), ({"256": 100.0}, True), ({"0": 100.1}, False)]:
        yield "logit_bias", ids, good
    for key in ("257", "2147483648", "-1", "1.5", "", " 1", "1 ", "a", "٣", "99999999999", "0x1", "None"):
        yield "logit_bias", {key: 1}, False
    for bias in (None, "1", True, [], {}, HUGE, -100.5):
        yield "logit_bias", {"1": bias}, False
    yield "logit_bias", {str(i): 0 for i in range(4097)}, False
    for stop in ("x", ["x"], ["x"] * 4, "é" * 1024, [], None):
        yield "stop", stop, True
    for stop in ("", [""], ["x"] * 5, "x" * 1025, 1, True, [1], [None], {"a": "b"}, [["x"]]):
        yield "stop", stop, False
    for flag in ("logprobs", "stream", "continue_final_message", "parallel_tool_calls", "return_token_ids"):
        for value in (0, 1, "true", [], {}, 1.5):
            yield flag, value, False
    for value in (*range(-2, 24), True, "5", 1.5, 2.0, [], 2**63):
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 20
        yield "top_logprobs", value, good
    for value in ([257], [-1], [2**31], [1.5], ["a"], [], "a", {}, [True], [256]):
        yield "answer_start_ids", value, False


ROWS = [*numbers(), *others()]


def test_the_table_is_large_enough() -> None:
    assert len(ROWS) >= 400
    assert {good for _, _, good in ROWS} == {True, False}


def test_every_value_is_taken_or_refused_by_name_and_the_engine_lives(server: Running) -> None:
    pid = server.service.engine.pid
    wrong = []
    with server.client() as client:
        for name, value, good in ROWS:
            body = ask("a", **({"logprobs": True} if name == "top_logprobs" else {}))
            response = client.post(URL, content=json.dumps(body | {name: value}), headers=JSON)
            param = (response.json().get("error") or {}).get("param") or ""
            if (response.status_code == 200) != good or (not good and not param.startswith(name)):
                wrong.append((name, str(value)[:40], response.status_code, response.text[:200]))
            assert client.post(URL, json=ask("alive", max_tokens=1)).status_code == 200
    assert not wrong
    assert server.service.engine.pid == pid and server.service.engine.running == 0


JSON = {"Content-Type": "application/json"}


def test_what_is_no_number_of_json_is_refused(server: Running) -> None:
    texts = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "01", "1.", "0x1", "--1"]
    with server.client() as client:
        for field in (*FLOATS, *INTEGERS, "top_logprobs"):
            for text in texts:
                body = json.dumps(ask("a", logprobs=True))[:-1] + f', "{field}": {text}}}'
                response = client.post(URL, content=body, headers=JSON)
                assert response.status_code == 400, (field, text[:20])


@pytest.mark.parametrize("url", [URL, RAW])
def test_limits_of_length_end_where_the_context_does(server: Running, url: str) -> None:
    prompt = {"messages": [{"role": "user", "content": "x" * 50}]} if url == URL else {"prompt": "x" * 50}
    with server.client() as client:
        for tokens in (-1, 0):
            response = client.post(url, json=prompt | {"max_tokens": tokens})
            assert response.status_code == 400 and response.json()["error"]["param"] == "max_tokens"
        for tokens, written in {1: 1, 50: 50, 51: 51, 150: 51, 151: 51, 10**6: 51, None: 51}.items():
            answer = client.post(url, json=prompt | {"max_tokens": tokens}).json()
            assert answer["usage"]["completion_tokens"] == written
            assert answer["choices"][0]["finish_reason"] == ("length" if written < 51 else "stop")
