"""The interpreter that has a peer's package: found, asked what it has, and run with its output in a log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.clean import clean_line
from qlocal.errors import EngineError, UsageError
from quantize.backends.base import Backend

SCRIPT = Path(__file__).with_name("peer.py")
LOOK_S = 60.0
"""How long an interpreter may take to say what it has; on a busy machine with a cold disk, seconds."""
POLL_S = 0.25
NUM_LAST_LINES = 6
TAIL_BYTES = 1 << 14

OnLine = Callable[[str], None]


@dataclass(frozen=True)
class Interpreter:
    """An interpreter that has the package. python: as it is called; versions: of the packages that it computes with."""

    backend: Backend
    python: str
    versions: Mapping[str, str]

    @property
    def tool(self) -> str:
        """What it runs, with versions."""
        return self.backend.tool(self.versions)

    def quantize(
        self, request: dict[str, Any], folder: Path, log: Path, environment: Mapping[str, str], on_line: OnLine
    ) -> None:
        """Have the package carry out a request (see `peer.py`), in `folder`; its output goes to `log`.

        on_line: shown its last line now and then. EngineError with its last lines when it fails. It is killed when
        this process is interrupted, and kills itself when this process is gone.
        """
        path = folder / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        with log.open("wb") as output:
            process = _start([self.python, str(SCRIPT), "quantize", str(path)], folder, output.fileno(), environment)
            try:
                _wait(process, log, on_line)
            finally:
                _end(process)
        if process.returncode != 0:
            raise EngineError(
                f"{self.tool} {_ending(process.returncode)}: {_last_lines(log)}", hint=f"Its output lies in {log}."
            )


def find(backend: Backend, path: Path | None, model_type: str) -> Interpreter:
    """Return the interpreter at `path`, or this one. UsageError when it is none, or lacks what such a model needs."""
    python = sys.executable if path is None else _executable(path)
    versions = _look(python, backend)
    backend.check(versions, model_type, "this interpreter" if path is None else python)
    return Interpreter(backend, python, versions)


def environment(device: str) -> dict[str, str]:
    """Return the environment of a peer that sees this device alone (`auto`: all there are), and never the network."""
    values = dict(os.environ) | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }
    if device != "auto":
        values["CUDA_VISIBLE_DEVICES"] = _visible(device)
    if (os.cpu_count() or 1) <= 2:  # GPTQModel 7.7 gives itself one worker there, which then waits for itself
        values.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    return values


def _executable(path: Path) -> str:
    found = shutil.which(path)  # a path, or a name on PATH; links stay, for they are what makes a virtual environment
    if found is None:
        wrong = "is not executable" if path.is_file() else "does not exist"
        raise UsageError(f"--backend-python {path}: {wrong}", hint="Name a Python interpreter.")
    return str(Path(found).absolute())


def _look(python: str, backend: Backend) -> dict[str, str]:
    """Return the versions that an interpreter has of what the report names."""
    try:
        answer = subprocess.run(
            [python, str(SCRIPT), "versions", *backend.reported],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOOK_S,
            check=True,
        )
        found = dict(json.loads(answer.stdout.decode().strip().splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"--backend-python {python}: is no Python interpreter of version 3.9 or newer",
            hint=f"Name one that has {backend.title}.",
        ) from error
    return {str(name): clean_line(str(version)) for name, version in found.items()}


def _visible(device: str) -> str:
    """Return CUDA_VISIBLE_DEVICES for a device that is named as this process counts them."""
    if device == "cpu":
        return ""
    number = int(device.partition(":")[2] or 0)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(number) if seen is None else seen.split(",")[number].strip()


def _start(command: list[str], folder: Path, output: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the peer in a session of its own: Ctrl-C is for this program, which then ends all that the peer started."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], log: Path, on_line: OnLine) -> None:
    """Wait for the peer's end; it stays a zombie, so that its session can still be named."""
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        lines = _tail(log)
        if lines:
            on_line(lines[-1])
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the peer's whole session: it may have left processes behind, however it ended."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None, "started with a pipe"
    process.stdin.close()


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code}" + (
            ", as happens without enough memory" if code == -signal.SIGKILL else ""
        )
    return f"failed with exit code {code}"


def _last_lines(log: Path) -> str:
    return " | ".join(_tail(log)[-NUM_LAST_LINES:]) or "it said nothing"


def _tail(log: Path) -> list[str]:
    """Return the last lines of a log that hold something, fit for a terminal; a progress bar is its last state."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = (line.rstrip().rpartition("\r")[2] for line in text.split("\n"))
    return [clean_line(line.strip())[:300] for line in lines if line.strip()]
