"""Run in a fresh process by test_memory.py: loads checkpoints one by one and prints what the process really holds.

Anonymous memory, as the system counts it, before and after; the cache is written once, since untouched pages cost
nothing, and a prompt is read as long as the context.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from pathlib import Path

from qlocal.devices import give_back_freed_memory
from qlocal.engine import loading
from qlocal.engine.loading import load_engine
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import dispatch
from qlocal.protocol import Load, Sampling, Submit

CONTEXT = 512


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


class Watch:
    """The highest anonymous memory between entering and leaving."""

    def __enter__(self) -> Watch:
        self.peak, self._ends = 0, False
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._thread.join()

    def _look(self) -> None:
        while not self._ends:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.002)


def settled() -> int:
    gc.collect()
    give_back_freed_memory()
    return anonymous()


def measure(path: str, dtype: str) -> dict[str, int]:
    checkpoint = open_checkpoint(Path(path))  # vocabularies are no part of a plan
    loading.open_checkpoint = lambda _: checkpoint
    before = settled()
    engine = load_engine(Load(path, ["cpu"], max_context=CONTEXT, slots=1, dtype=dtype), lambda _: None)
    for layer in engine._runner.cache.layers:
        for side in (layer.keys, layer.values):
            side.memory.fill_(1)
    held = settled()
    with Watch() as watch:
        input_ids = [7 * i % 300 for i in range(CONTEXT - 2)]
        engine.submit(Submit("prompt", input_ids, 1, [], Sampling(temperature=0.0), 300))
        while engine.has_work:
            engine.step()
    (part,) = engine.ready.plan["devices"]
    return {**part, "held": held - before, "step": watch.peak - held}


if __name__ == "__main__":
    dispatch.set_threads(2)
    measure(sys.argv[1], "bfloat16")  # the first run also pays for what a process has once
    print(json.dumps([measure(*argument.rsplit(":", 1)) for argument in sys.argv[1:][1:]]))
