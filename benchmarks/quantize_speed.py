"""How fast are GGUF files made, beside llama-quantize and what this machine reads from memory?

Ours and the peer take turns on the same BF16 weights, importance and threads; medians are printed as a Markdown table.
"tensors": reading, quantizing and writing every tensor, the peer's whole command against the same work in this process.
"command": both commands from the shell's prompt to the finished file, without importance.

    QLOCAL_LLAMA_BIN=FOLDER python benchmarks/quantize_speed.py [SOURCE] [--types q4_0 q4_k_m] [--threads N]

Without SOURCE a made-up checkpoint is quantized, of widths that every type divides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlocal.formats.gguf_keys import model_keys
from qlocal.formats.gguf_rows import permute_rows
from qlocal.formats.gguf_writer import GgufWriter
from qlocal.formats.type_mix import MIXES, choose_types, gguf_entries
from qlocal.ggml_types import FLOAT_TYPES, GgmlType
from qlocal.kernels import native
from qlocal.kernels.benchmark import read_bandwidth
from qlocal.models.base import Role, TensorSpec
from quantize.assemble import tokenizer_metadata
from quantize.methods.ggml import quantize_ggml
from quantize.source import PaddedSource, open_source
from tests import tiny

GEOMETRY = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 8,
}
_FLOATS = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}


@dataclass(frozen=True)
class Taken:
    """What one call took. cpu_s: of all its threads."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Row:
    """A line of the table. ours, peer: medians. source_bytes: of the BF16 weights that are quantized."""

    what: str
    type: str
    has_importance: bool
    source_bytes: int
    ours: Taken
    peer: Taken


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    native.set_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        path = options.source or tiny.write_checkpoint(scratch / "made-up", "qwen2", GEOMETRY)
        checkpoint = open_source(path)
        bench = Bench(PaddedSource(checkpoint, checkpoint.config), options.llama_bin, options.threads, scratch)
        rows = bench.run(options.types, options.repeats)
    read = read_bandwidth()
    _print(rows, path.name, options, read)
    if options.json is not None:
        options.json.write_text(json.dumps({"read_bytes_per_s": read, "rows": [asdict(r) for r in rows]}, indent=1))


class Bench:
    """The inputs of both sides, and one method for every call that is timed."""

    def __init__(self, source: PaddedSource, llama_bin: Path, threads: int, scratch: Path) -> None:
        self.source, self.threads, self.scratch = source, threads, scratch
        self.specs = list(source.architecture.tensors(source.config))
        self.importance = {s.gguf_name: _importance(s, i) for i, s in enumerate(self.specs) if _has_importance(s)}
        self.peer_source, self.imatrix = scratch / "source.gguf", scratch / "imatrix.dat"
        self._llama_quantize = llama_bin / "llama-quantize"
        self.write(self.peer_source, "bf16", with_importance=False)
        write_imatrix(self.imatrix, self.importance)

    def run(self, mixes: list[str], repeats: int) -> list[Row]:
        """Return a row for every type: tensors with and without importance, and the whole command."""
        rows = []
        for mix in mixes:
            for with_importance in (True, False):
                ours, peer = self._alternate(
                    lambda out, m=mix, w=with_importance: self.write(out, m, with_importance=w),
                    lambda out, m=mix, w=with_importance: self.peer(out, m, with_importance=w),
                    repeats,
                )
                rows.append(Row("tensors", mix, with_importance, self._source_bytes(), ours, peer))
            ours, peer = self._alternate(
                lambda out, m=mix: self.command(out, m),
                lambda out, m=mix: self.peer(out, m, with_importance=False),
                repeats,
            )
            rows.append(Row("command", mix, False, self._source_bytes(), ours, peer))
        return rows

    def write(self, out: Path, mix: str, *, with_importance: bool) -> None:
        """Read, quantize and write every tensor, in this process."""
        config, architecture = self.source.config, self.source.architecture
        types = choose_types(architecture, config, mix, with_importance)
        keys = model_keys(architecture, config, "benchmark", MIXES[mix].file_type) | tokenizer_metadata(self.source)
        writer = GgufWriter(out, keys, gguf_entries(architecture, config, types))
        for spec in self.specs:
            importance = self.importance.get(spec.gguf_name) if with_importance else None
            writer.write(spec.gguf_name, self._stored(spec, types[spec.gguf_name], importance), spec.expert or 0)
        writer.close()

    def command(self, out: Path, mix: str) -> None:
        """Run our command."""
        arguments = [str(self.source.path), "--format", "gguf", "--type", mix, "--no-imatrix", "--no-verify"]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, "-m", "quantize.cli", *arguments, "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, env=environment)

    def peer(self, out: Path, mix: str, *, with_importance: bool) -> None:
        """Run llama-quantize."""
        imatrix = ["--imatrix", str(self.imatrix)] if with_importance else []
        command = [str(self._llama_quantize), *imatrix, str(self.peer_source), str(out), mix, str(self.threads)]
        subprocess.run(command, check=True, capture_output=True)

    def _stored(self, spec: TensorSpec, ggml_type: GgmlType, importance: Tensor | None) -> Tensor:
        data = self.source.read(spec.name).data
        if spec.permuted_heads:
            data = permute_rows(data, spec.permuted_heads).contiguous()
        if ggml_type in FLOAT_TYPES:
            return data.to(_FLOATS[ggml_type])
        return quantize_ggml(data, ggml_type, importance).weight.blocks

    def _alternate(
        self, ours: Callable[[Path], None], peer: Callable[[Path], None], repeats: int
    ) -> tuple[Taken, Taken]:
        taken: tuple[list[Taken], list[Taken]] = ([], [])
        for _ in range(repeats):
            for side, call in zip(taken, (ours, peer), strict=True):
                out = self.scratch / "out.gguf"
                side.append(_time(call, out))
                for file in self.scratch.glob("out.*"):
                    file.unlink()
        return _median(taken[0]), _median(taken[1])

    def _source_bytes(self) -> int:
        return sum(2 * spec.shape[0] * spec.shape[1] for spec in self.specs if len(spec.shape) == 2)


def write_imatrix(path: Path, importance: dict[str, Tensor]) -> None:
    """Write llama.cpp's older importance file: a count, then for each name the calls, the values, and their number."""
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(importance)))
        for name, values_K in importance.items():
            file.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, len(values_K)))
            file.write(values_K.numpy().tobytes())


def _has_importance(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and spec.role not in (Role.EMBEDDING, Role.HEAD, Role.ROUTER)


def _importance(spec: TensorSpec, seed: int) -> Tensor:
    """Return made-up mean squares as uneven as real ones are."""
    return torch.randn(spec.shape[1], generator=torch.Generator().manual_seed(seed)).mul(1.5).exp()


def _time(call: Callable[[Path], None], out: Path) -> Taken:
    start_s, cpu_s = time.perf_counter(), _cpu_s()
    call(out)
    return Taken(time.perf_counter() - start_s, _cpu_s() - cpu_s)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _median(taken: list[Taken]) -> Taken:
    return Taken(statistics.median(t.wall_s for t in taken), statistics.median(t.cpu_s for t in taken))


def _print(rows: list[Row], name: str, options: argparse.Namespace, read: float) -> None:
    size = rows[0].source_bytes / 1e9
    print(f"{name}, {size:.2f} GB of BF16 weights, {options.threads} threads, medians of {options.repeats}; ", end="")
    print(f"the same threads read {read / 1e9:.1f} GB/s from memory.\n")
    print(
        "| what | type | importance | ours GB/s | peer GB/s | faster | of read | ours CPU s | peer CPU s | less CPU |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        ours, peer = row.source_bytes / row.ours.wall_s, row.source_bytes / row.peer.wall_s
        print(
            f"| {row.what} | {row.type.upper()} | {'yes' if row.has_importance else 'no'} | {ours / 1e9:.3f} "
            f"| {peer / 1e9:.3f} | {ours / peer:.1f} x | {ours / read:.1%} | {row.ours.cpu_s:.2f} "
            f"| {row.peer.cpu_s:.2f} | {row.peer.cpu_s / row.ours.cpu_s:.1f} x |"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, help="folder of BF16 safetensors")
    parser.add_argument("--types", nargs="+", default=["q4_0", "q4_k_m"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where inputs and results lie, by default the system's place")
    parser.add_argument("--llama-bin", type=Path, default=os.environ.get("QLOCAL_LLAMA_BIN"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.llama_bin is None or not (options.llama_bin / "llama-quantize").is_file():
        parser.error("--llama-bin or QLOCAL_LLAMA_BIN names the folder that holds llama-quantize")
    return options


if __name__ == "__main__":
    main()
