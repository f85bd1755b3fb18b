"""How much memory and time does one layer of a large model take to quantize?

Writes decoder layers of the true geometry of Qwen2.5-72B or Mixtral 8x22B (made-up, seeded BF16 weights; the vocabulary
alone is reduced, since embedding and head are not what is asked about), quantizes them to AWQ, GPTQ and Q4_K_M in one
run, and samples the anonymous memory of the process and its helpers: mapped files, the activations among them, are
apart. The floor is what the matrix products alone would take at the speed of large ones, measured in the same run.

    python benchmarks/quantize_large.py [--model qwen2.5-72b] [--samples 8] [--seq-len 2048] [--layers 2]
        [--formats awq,gptq,gguf] [--arguments="--no-hessian"]

`--source-only` ends once the checkpoint is written: files for `cpu_vs_llamacpp.py` are made of it by `quantize --rtn`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlocal.formats.safetensors_writer import SafetensorsWriter, TensorEntry
from qlocal.models import ARCHITECTURES
from qlocal.models.base import Role, TensorSpec
from qlocal.models.config_fields import parse_config
from quantize.recipe import FFN_MULTIPLE
from tests import tiny

GEOMETRIES = {
    "qwen2.5-72b": (
        "qwen2",
        {
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
        },
    ),
    "mixtral-8x7b": (
        "mixtral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "mixtral-8x22b": (
        "mixtral",
        {
            "hidden_size": 6144,
            "intermediate_size": 16384,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "max_position_embeddings": 65536,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
}
INTERVAL_S = 0.2
ROWS = 2048


@dataclass
class Peaks:
    """Largest values seen. anonymous: RssAnon of the process tree, bytes."""

    anonymous: int = 0
    resident: int = 0

    def look(self, process: psutil.Process) -> None:
        """Add one observation of the process and its children; those that have just ended count as nothing."""
        anonymous = resident = 0
        for one in [process, *process.children(recursive=True)]:
            for line in _status(one.pid):
                name, _, value = line.partition(":")
                anonymous += int(value.split()[0]) * 1024 if name == "RssAnon" else 0
                resident += int(value.split()[0]) * 1024 if name == "VmRSS" else 0
        self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)


def _status(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []


def write_source(folder: Path, model: str, num_layers: int) -> None:
    """Write the checkpoint unless it stands already; 1.8 GB a layer of the 72B, 5 GB of the 8x22B."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model_type, geometry = GEOMETRIES[model]
    raw = tiny.raw_config(model_type, geometry | {"num_hidden_layers": num_layers})
    config = parse_config(raw, ARCHITECTURES[model_type], "config.json")
    specs = list(ARCHITECTURES[model_type].tensors(config))
    beside = folder / "model.safetensors.tmp"
    writer = SafetensorsWriter(beside, {spec.name: TensorEntry("BF16", spec.shape) for spec in specs})
    generator = torch.Generator().manual_seed(72)
    for spec in specs:
        writer.write(spec.name, _values(spec, generator))
    writer.close()
    tiny.tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": tiny.CHAT_TEMPLATE}))
    (folder / "config.json").write_text(json.dumps(raw))
    beside.rename(folder / "model.safetensors")


def _values(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    """Return bf16 values: norms around 1 with a few large channels, small weights, key biases of some size."""
    if len(spec.shape) == 1:
        noise = torch.randn(spec.shape, generator=generator)
        if spec.is_bias:
            return (noise * (30.0 if spec.role is Role.K else 0.5)).bfloat16()
        return (1.0 + 0.2 * noise).abs().bfloat16()
    values = torch.empty(spec.shape, dtype=torch.bfloat16)
    for rows in values.split(ROWS):
        rows.copy_(torch.randn(rows.shape, generator=generator).div_(spec.shape[1] ** 0.5))
    return values


@dataclass(frozen=True)
class Taken:
    """What the run took. processor_s: of all threads; beside other work it says more than the time."""

    wall_s: float
    processor_s: float
    peaks: Peaks


def run(source: Path, out: Path, arguments: argparse.Namespace) -> Taken:
    """Quantize in a process of its own."""
    command = [sys.executable, "-m", "quantize.cli", str(source), "--format", arguments.formats, "--out", str(out)]
    command += ["--samples", str(arguments.samples), "--seq-len", str(arguments.seq_len), "--overwrite"]
    command += shlex.split(arguments.arguments)
    started, peaks = time.monotonic(), Peaks()
    process = psutil.Popen(command, cwd=Path(__file__).resolve().parents[1])
    while process.poll() is None:
        peaks.look(process)
        time.sleep(INTERVAL_S)
    if process.returncode:
        raise SystemExit(f"quantize ended with {process.returncode}")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(time.monotonic() - started, spent.ru_utime + spent.ru_stime, peaks)


@dataclass(frozen=True)
class Work:
    """Floating point operations of one layer. rounded: products whose inputs are bf16; exact: those of float32."""

    rounded: float
    exact: float

    def seconds(self) -> float:
        """Return how long they take at the speed of large products here."""
        return self.rounded / _speed("bf16") + self.exact / _speed("ieee")


def layer_work(model: str, num_formats: int, arguments: argparse.Namespace) -> Work:
    """Return what capturing a layer and solving it for every result takes."""
    model_type, geometry = GEOMETRIES[model]
    config = parse_config(tiny.raw_config(model_type, geometry), ARCHITECTURES[model_type], "config.json")
    linears = [spec for spec in ARCHITECTURES[model_type].layer_tensors(config, 0) if spec.is_quantized]
    tokens = arguments.samples * arguments.seq_len
    attention = 2.0 * tokens * arguments.seq_len * config.q_size
    forward, rounded, exact = attention, 0.0, 0.0
    for spec in linears:
        rows, columns = (-(-size // FFN_MULTIPLE) * FFN_MULTIPLE for size in spec.shape)
        seen = tokens * (config.num_experts_per_tok / config.num_experts if spec.expert is not None else 1.0)
        forward += 2 * rows * columns * seen
        again = {Role.O: 1, Role.GATE: 1, Role.UP: 1, Role.DOWN: 0}.get(spec.role, 2)
        rounded += again * 2 * rows * columns * seen
        if spec.role in (Role.Q, Role.O, Role.GATE, Role.DOWN):  # an input each: matrix and factor
            rounded += columns * columns * seen
            exact += columns**3 / 3
        exact += rows * columns * columns
    return Work(forward + num_formats * (rounded + 2 * attention), num_formats * exact)


def _speed(precision: str) -> float:
    """Return operations a second of a large product."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    left, right = torch.randn(2048, 4096), torch.randn(4096, 4096)
    times = []
    for _ in range(5):
        started = time.monotonic()
        left @ right
        times.append(time.monotonic() - started)
    matmul.fp32_precision = before
    return 2.0 * 2048 * 4096 * 4096 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qlocal-benchmarks"
    parser.add_argument("--folder", type=Path, default=default, help="where source and results are kept")
    parser.add_argument("--model", choices=list(GEOMETRIES), default="qwen2.5-72b")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--formats", default="awq,gptq,gguf")
    parser.add_argument("--limit-gb", type=float, default=14.0, help="of anonymous memory")
    parser.add_argument("--source-only", action="store_true", help="write the checkpoint, print where, and end")
    parser.add_argument("--arguments", default="", help="further ones for quantize, such as --no-verify")
    arguments = parser.parse_args()
    source = arguments.folder / f"{arguments.model}-{arguments.layers}-layers"
    write_source(source, arguments.model, arguments.layers)
    if arguments.source_only:
        print(source)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as out:
        place = Path(out) / ("m.gguf" if arguments.formats == "gguf" else "results")
        taken = run(source, place, arguments)
    hidden_size = int(GEOMETRIES[arguments.model][1]["hidden_size"])
    activations = 3 * arguments.samples * arguments.seq_len * hidden_size * 4
    work = layer_work(arguments.model, len(arguments.formats.split(",")), arguments)
    floor, seconds, peaks = work.seconds(), taken.wall_s, taken.peaks
    result = {
        "model": arguments.model,
        "formats": arguments.formats,
        "arguments": arguments.arguments,
        "layers": arguments.layers,
        "tokens": arguments.samples * arguments.seq_len,
        "seconds": round(seconds, 1),
        "seconds_a_layer": round(seconds / arguments.layers, 1),
        "processor_seconds_a_layer": round(taken.processor_s / arguments.layers, 1),
        "floor_seconds_a_layer": round(floor, 1),
        "bf16_operations_a_layer": work.rounded,
        "float32_operations_a_layer": work.exact,
        "source_bytes": (source / "model.safetensors").stat().st_size,
        "peak_anonymous_bytes": peaks.anonymous,
        "peak_resident_bytes": peaks.resident,
        "mapped_activation_bytes": activations,
        "within_limit": peaks.anonymous < arguments.limit_gb * 1e9,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(f"\n{arguments.model}, {arguments.formats}, {arguments.layers} layers, {result['tokens']} tokens")
    print(f"  time                   {seconds:8.1f} s, {seconds / arguments.layers:.1f} s a layer")
    processor_s = taken.processor_s / arguments.layers
    share = floor * len(os.sched_getaffinity(0)) / processor_s
    print(f"  processor time         {processor_s:8.1f} s a layer")
    print(
        f"  products               {work.rounded / 1e12:8.1f} TFLOP of bf16 a layer, {work.exact / 1e12:.1f} of float32"
    )
    print(f"  their floor            {floor:8.1f} s a layer on all cores, {100 * share:.0f} % of the processor time")
    print(f"  peak anonymous memory  {peaks.anonymous / 1e9:8.2f} GB of {arguments.limit_gb:g}")
    print(f"  peak resident memory   {peaks.resident / 1e9:8.2f} GB, mapped files included")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
