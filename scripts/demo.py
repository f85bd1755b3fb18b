"""`make demo`: a BF16 checkpoint goes in, three 4-bit ones come out, are compared and talked to.

Everything it makes lies in one cache folder (QLOCAL_CACHE moves it) and is used again by the next run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
from demo_conversation import converse
from demo_measure import Row, measure
from demo_source import smollm2_folder
from rich.console import Console
from rich.table import Table

from qlocal.errors import EngineError, QLocalError

GGUF_TYPE = "q4_k_m"
# Enough for a model of this size to profit, little enough for two cores.
CALIBRATION = ("--samples", "32", "--seq-len", "512")
CHATS_WITH = "gguf"

console = Console()


def main() -> int:
    """Run the demo. Returns the exit code."""
    try:
        cache = cache_folder()
        given = os.environ.get("MODEL", "")
        source = Path(given).expanduser().absolute() if given else smollm2_folder(cache)
        work = cache / work_name(source)
        work.mkdir(exist_ok=True)
        os.environ["QLOCAL_RUNTIME"] = str(work / "run")  # a server of its own, not the user's
        console.rule(f"[bold]{source.name}")
        results = quantize(source, work / "4bit")
        console.print(comparison(measure_all({"bf16": source, **results}, work)))
        return talk(results[CHATS_WITH])
    except QLocalError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def cache_folder() -> Path:
    override = os.environ.get("QLOCAL_CACHE")
    folder = (Path(override).expanduser().absolute() if override else platformdirs.user_cache_path("qlocal")) / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def work_name(source: Path) -> str:
    """Return a folder name of its own for each checkpoint, two of which may have the same name."""
    return f"{source.name}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}"


def quantize(source: Path, out: Path) -> dict[str, Path]:
    """Return the results by format, made on the first call; an interrupted one goes on where it was."""
    results = {"awq": out / "awq", "gptq": out / "gptq", "gguf": out / f"{source.name}-{GGUF_TYPE}.gguf"}
    if all(path.exists() for path in results.values()):
        console.print(f"Quantized already; to do it again, remove {out}")
        return results
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "quantize.cli", str(source), "--format", ",".join(results)]
    started = time.monotonic()
    code = subprocess.run([*command, "--type", GGUF_TYPE, *CALIBRATION, "--out", str(out)]).returncode
    if code:
        raise EngineError(f"quantize ended with exit code {code}")
    console.print(f"Quantized into three formats in {time.monotonic() - started:.0f} s")
    return results


def measure_all(checkpoints: dict[str, Path], work: Path) -> list[Row]:
    """Measure every checkpoint; the first is the source."""
    rows = []
    for name, path in checkpoints.items():
        with console.status(f"Measuring {name}"):
            rows.append(measure(name, path, checkpoints["bf16"], work))
    return rows


def comparison(rows: list[Row]) -> Table:
    """Return the table of all checkpoints. KL in nats a token, against the BF16 source."""
    table = Table(title="The same model, four times", caption="KL: mean distance to BF16 in nats a token")
    for heading in ("format", "size MB", "of BF16", "perplexity", "KL", "same top token", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for row in rows:
        table.add_row(*row.cells(rows[0].num_bytes))
    return table


def talk(model: Path) -> int:
    """Open the chat, or print a short conversation where nobody can type (or CHAT=0)."""
    if os.environ.get("CHAT", "1") != "0" and sys.stdin.isatty() and sys.stdout.isatty():
        return subprocess.run([sys.executable, "-m", "qlocal.cli", "chat", str(model)]).returncode
    console.rule(f"[bold]A conversation with {model.name}")
    converse(model, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
