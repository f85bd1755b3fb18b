"""What the demo's table says of a checkpoint, measured by `qlocal eval` and `qlocal bench`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.errors import EngineError

# Written for this and kept out of the calibration texts: nothing was fitted to it.
TEXT = Path(__file__).with_name("demo-text.txt")
EVAL = ("--text", str(TEXT), "--chunks", "8", "--length", "256")
BENCH = ("--prompt-tokens", "64", "--decode-tokens", "32")


@dataclass(frozen=True)
class Row:
    """One line of the table. num_bytes: of all tensors; kl in nats a token and top1 (0..1) are None for the source."""

    name: str
    num_bytes: int
    perplexity: float
    kl: float | None
    top1: float | None
    tokens_per_s: float

    def cells(self, bf16_bytes: int) -> list[str]:
        """Return the cells as text; `bf16_bytes` is the size that all are compared with."""
        return [
            self.name,
            f"{self.num_bytes / 1e6:.1f}",
            f"{self.num_bytes / bf16_bytes:.0%}",
            f"{self.perplexity:.2f}",
            "" if self.kl is None else f"{self.kl:.4f}",
            "" if self.top1 is None else f"{self.top1:.1%}",
            f"{self.tokens_per_s:.1f}",
        ]


def measure(name: str, model: Path, source: Path, memory: Path) -> Row:
    """Measure a checkpoint. Its quality is remembered in the folder `memory`; its speed is always taken anew."""
    quality = _quality(name, model, source, memory)
    speed = _qlocal("bench", str(model), *BENCH)
    return Row(
        name=name,
        num_bytes=quality["bytes"],
        perplexity=quality["ppl"],
        kl=quality.get("mean_kl"),
        top1=quality.get("top1"),
        tokens_per_s=speed["decode_tokens_per_s"],
    )


def _quality(name: str, model: Path, source: Path, memory: Path) -> dict[str, Any]:
    # A new text or a result made anew is another measurement.
    identity = f"{hashlib.sha256(TEXT.read_bytes()).hexdigest()} {model.stat().st_mtime_ns} {EVAL[2:]}"
    stored = memory / f"quality-{name}.json"
    if stored.exists():
        known = json.loads(stored.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            found: dict[str, Any] = known["quality"]
            return found
    reference = () if model == source else ("--reference", str(source))
    quality = _qlocal("eval", str(model), *EVAL, *reference)
    stored.write_text(json.dumps({"identity": identity, "quality": quality}), encoding="utf-8")
    return quality


def _qlocal(*arguments: str) -> dict[str, Any]:
    """Run a command of qlocal with --json and return what it prints."""
    command = [sys.executable, "-m", "qlocal.cli", *arguments, "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise EngineError(f"`qlocal {arguments[0]}` ended with exit code {result.returncode}")
    values: dict[str, Any] = json.loads(result.stdout)
    return values
