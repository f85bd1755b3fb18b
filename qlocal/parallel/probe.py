"""What an exchange between two devices of this machine takes: measured by two processes, as a tensor split runs them.

`python -m qlocal.parallel.probe STORE RANK DEVICE DEVICE` is one of the two; `measure` starts both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qlocal.endings import leave_process

WIDTH = 8192
"""Of the 72B: 16 KiB a token."""
WAIT_S = 120.0
"""The kernel is compiled first, where it never was."""
_NONE = "none"


def measure(devices: Sequence[str], wait_s: float = WAIT_S) -> float | None:
    """Return the microseconds of a sum of 16 KiB through host memory, or None where these devices have no such way."""
    with tempfile.TemporaryDirectory(prefix="qlocal-probe-") as folder:
        command = [sys.executable, "-m", "qlocal.parallel.probe", str(Path(folder) / "store")]
        started = [
            subprocess.Popen(
                [*command, str(rank), *devices], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            for rank in range(len(devices))
        ]
        try:
            said = [process.communicate(timeout=wait_s)[0].strip() for process in started]
        except subprocess.TimeoutExpired:
            return None
        finally:
            for process in started:
                process.kill()
                process.communicate()
    return None if not said[0] or said[0] == _NONE else float(said[0])


def _take_part(store: str, rank: int, devices: Sequence[str]) -> None:
    import torch

    from qlocal.parallel.collectives import Collectives
    from qlocal.parallel.host_exchange import open_exchange
    from qlocal.parallel.rendezvous import Meeting, join, leave

    device = torch.device(devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    meeting = Meeting(path=store)
    # Votes and messages alone go by gloo.
    group = join(meeting, meeting.open(hosts=False), rank, len(devices), ["cpu"] * len(devices))
    exchange = open_exchange(Collectives(group, torch.bfloat16), device, WIDTH)
    if rank == 0:
        print(_NONE if exchange is None else f"{exchange.latency_us:.1f}")
    leave()


if __name__ == "__main__":
    _take_part(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
    leave_process(0)
