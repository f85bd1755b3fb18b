"""Loading again: what a request does not name stays as it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qlocal.config import EngineOptions
from qlocal.launch import request_load
from qlocal.schema import EngineState
from tests.server.conftest import Running, Start, eventually
from tests.server.real import real_server
from tests.tiny import write_checkpoint

SHOWN = ("path", "max_context", "kv", "head", "offload", "split", "devices", "draft")


class Loads:
    """A server whose rank writes down what it is told to load."""

    def __init__(self, server: Running, log: Path) -> None:
        self._log, self.server = log, server

    def __call__(self, model: str = "echo", *, end: EngineState = EngineState.READY, **fields: Any) -> dict[str, str]:
        """Load a model; return what the rank was told."""
        before = len(self._told())
        with self.server.client() as client:
            assert client.post("/qlocal/load", json={"model": model} | fields).status_code == 202
        eventually(lambda: len(self._told()) > before, timeout_s=60.0)
        self.server.wait_for(end, 60.0)
        return self._told()[-1]

    def _told(self) -> list[dict[str, str]]:
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("Load(")]
        return [{name: _field(line, name) for name in SHOWN} for line in lines]


def _field(line: str, name: str) -> str:
    found = re.search(rf"\b{name}=('[^']*'|\[[^]]*\]|[^,)]*)", line)
    assert found is not None, f"no {name} in {line}"
    return found[1].strip("'")


@pytest.fixture
def load(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loads:
    monkeypatch.setenv("FAKE_RANK_LOG", str(tmp_path / "log"))
    return Loads(start(), tmp_path / "log")


def test_a_reload_that_names_one_option_keeps_all_others(load: Loads) -> None:
    asked = {"max_context": 64, "kv": "q8", "head": "q6_k", "offload": "layers", "split": "layer", "draft": "none"}
    first = load(devices=["cpu", "cpu"], **asked)
    assert first == first | {name: str(value) for name, value in asked.items()}
    assert load(kv="q4") == first | {"kv": "q4"}
    assert load(max_context=128) == first | {"kv": "q4", "max_context": "128"}
    assert load() == first | {"kv": "q4", "max_context": "128"}


def test_the_command_line_leaves_what_it_was_not_asked_for(load: Loads) -> None:
    first = load(split="layer", offload="layers", max_context=64)
    request_load(load.server.address, "echo", EngineOptions(kv="q4"))
    assert load() == first | {"kv": "q4"}


def test_what_was_refused_is_not_kept(load: Loads) -> None:
    changed = load(kv="q8")
    with load.server.client() as client:
        for wrong in ({"kv": "q77"}, {"draft": "unknown"}, {"max_context": 0}):
            body = {"model": "echo", "max_context": 64} | wrong
            assert 400 <= client.post("/qlocal/load", json=body).status_code < 500
    assert load() == changed


def test_a_load_that_failed_leaves_nothing_behind(load: Loads) -> None:
    own = load()
    assert load("broken", end=EngineState.FAILED, max_context=64)["max_context"] == "64"
    assert load("broken", end=EngineState.FAILED) == own | {"path": "/models/broken"}


def test_a_real_engine_keeps_its_context_and_cache_when_one_of_them_changes(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny")

    def held(server: Running, **fields: Any) -> tuple[int, str]:
        with server.client() as client:
            client.post("/qlocal/load", json={"model": str(path)} | fields)
            server.wait_for(EngineState.READY, 120.0)
            planned = client.post("/qlocal/plan", json={"model": str(path)}).json()["plan"]
            status = client.get("/qlocal/status").json()
        plan = status["plan"]
        assert (planned["max_context"], planned["key_type"]) == (status["max_context"], plan["key_type"])
        return status["max_context"], plan["key_type"]

    with real_server(tmp_path, path) as server:
        context, _ = held(server, max_context=96, kv="f16")
        assert held(server, kv="q8") == (context, "q8")
