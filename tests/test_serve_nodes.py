"""Which machines hold a model together: from the command line, or from torchrun's environment."""

from __future__ import annotations

import pytest

from qlocal.cli import build_parser, main
from qlocal.commands import serve
from qlocal.commands.options import engine_options
from qlocal.config import EngineOptions, Nodes

TORCHRUN = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def options(*arguments: str) -> EngineOptions:
    args = build_parser().parse_args(["serve", *arguments])
    return serve._with_nodes(engine_options(args)[0], args)


def test_one_machine_is_no_node() -> None:
    assert options("m").nodes is None
    assert options("m", "--nodes", "1", "--rendezvous", "a:1").nodes is None


def test_nodes_and_their_rendezvous_are_read() -> None:
    found = options("m", "--nodes", "2", "--node-rank", "1", "--rendezvous", "[::1]:29500", "--devices", "cpu,cpu")
    assert found.nodes == Nodes(2, 1, "::1", 29500)
    assert found.devices == ("cpu", "cpu")


def test_torchrun_starts_a_process_a_device_and_keeps_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    found = options("m", "--devices", "cuda:0,cuda:1")
    assert found.nodes == Nodes(4, 3, "10.0.0.1", 29500, has_store=True, prefix="qlocal/2")
    assert found.devices == ("cuda:1",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("m", "--nodes", "2"), "--nodes needs --rendezvous HOST:PORT"),
        (("m", "--nodes", "2", "--rendezvous", "here"), "--rendezvous 'here' is no HOST:PORT"),
        (("m", "--nodes", "2", "--rendezvous", "a:70000"), "is no HOST:PORT"),
        (("m", "--nodes", "2", "--node-rank", "2", "--rendezvous", "a:1"), "--node-rank 2 is not from 0 to 1"),
        (("--nodes", "2", "--rendezvous", "a:1"), "load the MODEL that each is given"),
        (("m", "--nodes", "2", "--rendezvous", "a:1", "--split", "layer"), "is for the devices of one machine"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
