"""How far loading is on every device."""

from __future__ import annotations

from qlocal.engine.loading import _progress
from qlocal.plan import make_plan
from qlocal.protocol import Progress
from tests.memory_checkpoint import MemoryCheckpoint


def test_progress_tells_the_layers_of_every_device() -> None:
    plan = make_plan(MemoryCheckpoint("qwen2", {"num_hidden_layers": 4}), ["cpu", "cpu"], max_context=256)
    told: list[Progress] = []
    tell = _progress(plan, None, told.append)
    for done, layer in enumerate([None, 0, 1, 2, 3]):
        tell(done, 4, layer)
    assert [progress.layers for progress in told] == [{"cpu": [done, 4]} for done in range(5)]
    assert all(progress.stage.startswith("loading ") for progress in told)
