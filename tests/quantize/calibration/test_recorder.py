import torch
from torch import Tensor

from qlocal.layers.attention import causal
from qlocal.layers.loader import load_layer
from qlocal.layers.rotary import Rotary
from qlocal.models.base import Role
from quantize.calibration.recorder import Recorder, Wanted, batches
from tests.memory_checkpoint import MemoryCheckpoint


def test_recorder_sees_the_inputs_of_every_linear_once() -> None:
    checkpoint = MemoryCheckpoint("mixtral")
    layer = load_layer(checkpoint, 0, "cpu", "float32", "reference")
    wanted = {(role, None): Wanted() for role in (Role.Q, Role.O, Role.ROUTER)}
    wanted |= {(role, expert): Wanted(gram=True) for role in (Role.GATE, Role.DOWN) for expert in range(4)}
    recorder = Recorder(checkpoint.config, wanted)
    states = torch.randn(50, checkpoint.config.hidden_size)
    rotation = Rotary(checkpoint.config).at(torch.arange(50))

    def observe(role: Role, expert: int | None, x_TK: Tensor, tokens: Tensor | None) -> bool:
        recorder.record((role, expert), x_TK, None)
        return False

    layer.ffn_block(layer.attention_block(states, rotation, causal([50]), observe), observe)
    stats = recorder.finish()
    assert stats[Role.Q, None].tokens == stats[Role.ROUTER, None].tokens == 50
    assert sum(stats[Role.GATE, expert].tokens for expert in range(4)) == 50 * 2
    assert stats[Role.DOWN, 0].columns == checkpoint.config.intermediate_size
    assert stats[Role.DOWN, 0].gram_KK is not None and stats[Role.Q, None].gram_KK is None


def test_batches_respect_the_memory_and_lose_nothing() -> None:
    config = MemoryCheckpoint("mixtral").config
    wanted = {(Role.DOWN, expert): Wanted(gram=True) for expert in range(4)}
    one = 4 * config.intermediate_size**2
    parts = list(batches(config, wanted, 2 * one))
    assert [len(part) for part in parts] == [2, 2]
    assert [key for part in parts for key in part] == list(wanted)
    assert [len(part) for part in batches(config, wanted, 1)] == [1, 1, 1, 1]
