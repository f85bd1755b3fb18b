from __future__ import annotations

import pytest

from qlocal.errors import RequestError
from qlocal.server import json_body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON list"),
        (b'"x"', "JSON str"),
        (b"null", "NoneType"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "deeper than 64"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 64"),
    ],
)
def test_body_that_later_steps_would_trip_over_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        json_body.parse(body)
    assert caught.value.status == 400


def test_plain_body_is_read() -> None:
    assert json_body.parse('{"a": ["é", 1.5, null, true]}'.encode()) == {"a": ["é", 1.5, None, True]}
