"""A node that does not serve: its ranks compute for node 0, and end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from qlocal.config import EngineOptions
from qlocal.errors import EngineError
from qlocal.protocol import Failed, Progress, Ready
from qlocal.server.rank_process import RANK_COMMAND, RankProcess
from qlocal.server.service import load_message


def run_node(path: Path, options: EngineOptions, announce: Callable[[str], None] = print) -> None:
    """Compute this node's part of the model at `path` until node 0 ends.

    announce: gets a line when the model is ready. EngineError with the reason when it ends otherwise.
    """
    asyncio.run(_run(path, options, announce))


async def _run(path: Path, options: EngineOptions, announce: Callable[[str], None]) -> None:
    nodes, cause = options.nodes, None
    assert nodes is not None, "a node is one of several"
    rank, ending = await RankProcess.start(RANK_COMMAND), ""
    try:
        rank.send(load_message(path, options))
        async for message in rank.messages():
            if isinstance(message, Ready):
                announce(f"node {nodes.rank} of {nodes.count} computes for {nodes.host}:{nodes.port}")
            elif isinstance(message, Failed):
                cause = EngineError(message.message, hint=message.hint)
            elif not isinstance(message, Progress):
                raise EngineError(f"a rank sent a {type(message).__name__}, which it must not")
    finally:
        ending = await rank.end()
    if cause is not None or rank.exit_code != 0:
        raise cause or EngineError(ending)
