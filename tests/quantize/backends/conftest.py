from __future__ import annotations

from pathlib import Path

import pytest

from tests.quantize.backends.fake_peer import FakePeer
from tests.quantize.conftest import Quantize


@pytest.fixture
def peer(tmp_path: Path, qwen2: Path, run: Quantize) -> FakePeer:
    """A peer with both packages, whose results are plain roundings of the source `qwen2`."""
    peer = FakePeer(tmp_path / "peer", {"gptqmodel": "7.7.0", "autoawq": "0.2.9", "transformers": "5.20.0"})
    for name in ("awq", "gptq"):
        run(qwen2, "--format", name, "--rtn", "--group-size", "64", out=f"native-{name}").rename(peer.result(name))
    return peer
