"""What runs in a worker process: the same solver over the same files, after a look at what it computes with.

It knows nothing of Ray. Expected failures come back as values, since not every exception survives the way.
"""

from __future__ import annotations

import functools
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from qlocal.devices import keep_freed_memory
from qlocal.errors import QLocalError
from qlocal.ggml_types import GgmlType
from quantize.arithmetic import arithmetic, differences
from quantize.options import Options
from quantize.recipe import make_recipe
from quantize.source import PaddedSource, open_source
from quantize.state import Unit
from quantize.unit_solver import Job, UnitSolver

_SHARED = "The folders of the source and of the work lie at the same paths on every machine: see --work-dir."


@dataclass(frozen=True)
class Site:
    """Where a run works and with what; the same for all of its jobs. `source` and `folder` are absolute paths that
    every worker sees. measured: what --target-size has chosen, by GGUF name."""

    source: Path
    name: str
    options: Options
    folder: Path
    device: str
    threads: int
    arithmetic: tuple[tuple[str, str], ...]
    measured: tuple[tuple[str, GgmlType], ...] | None = None


@dataclass(frozen=True)
class Failure:
    """An expected failure, in one sentence."""

    message: str
    hint: str | None


def objection(site: Site) -> str | None:
    """Say why this machine may not work there: it would compute other bytes, or does not see the files."""
    found = differences(dict(site.arithmetic), arithmetic(site.device))
    unseen = [f"{path} is not there" for path in (site.source, site.folder) if not path.is_dir()]
    return f"{socket.gethostname()}: {'; '.join(found + unseen)}" if found or unseen else None


def solve_there(site: Site, job: Job) -> Unit | Failure:
    """Solve one job of a site."""
    refused = objection(site)
    if refused is not None:
        return Failure(refused, _SHARED)
    keep_freed_memory()
    torch.set_num_threads(site.threads)
    try:
        return _solver(site).solve(job, lambda target, module, loss: None)
    except QLocalError as error:
        return Failure(error.message, error.hint)
    except OSError as error:
        return Failure(f"{socket.gethostname()}: {error.filename or 'a file'}: {error.strerror or error}", _SHARED)


@functools.lru_cache(maxsize=1)
def _solver(site: Site) -> UnitSolver:
    checkpoint = open_source(site.source)
    measured = None if site.measured is None else dict(site.measured)
    recipe = make_recipe(checkpoint.architecture, checkpoint.config, site.options, site.name, measured)
    return UnitSolver(PaddedSource(checkpoint, recipe.config), recipe, site.options, site.folder, site.device)
