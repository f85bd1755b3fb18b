"""Is the CPU engine faster than llama.cpp and ik_llama.cpp, on the same file and threads?

    cpu_vs_llamacpp.py MODEL [MODEL ...] [--threads 1 2] [--depths 0 4096] [--prompts 128 512 2048]
                       [--rounds 3] [--json FILE]

QLOCAL_LLAMA_BIN names the folder of llama.cpp's `llama-bench`, QLOCAL_IK_BIN that of ik_llama.cpp's, which repacks
weights while it loads, as its users are told to. The engines take
turns, a fresh process for every figure, so that a change of the machine's mood meets all of them. Decoding is given as
a share of the rate at which this machine reads memory, prompts as a share of its multiplications in registers; both are
measured in the same run. Medians, with (least to greatest) over the rounds. A MODEL is a .gguf file, or an AWQ or GPTQ
folder, which the peers do not read. QLOCAL_CPU_ISA limits ours alone: name a folder of peers built for as much.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from qlocal.engine.bench import bytes_per_token, operations_per_token
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import benchmark, dispatch

DECODE_TOKENS = 64


@dataclass(frozen=True)
class Case:
    """One figure: a prompt of `length` tokens, or decoding behind `length` tokens of context."""

    kind: str
    length: int
    threads: int

    def __str__(self) -> str:
        return f"prompt {self.length}" if self.kind == "prompt" else f"decode at {self.length}"


class Engine(Protocol):
    """Something that runs a case in a process of its own."""

    @property
    def name(self) -> str:
        """Return what it is called in the table."""

    def tokens_per_s(self, model: Path, case: Case) -> float:
        """Return the tokens a second of one run."""


@dataclass(frozen=True)
class Ours:
    """`qlocal bench`, with this interpreter."""

    name: str = "qlocal"

    def tokens_per_s(self, model: Path, case: Case) -> float:
        is_prompt = case.kind == "prompt"
        lengths = (case.length, 1) if is_prompt else (max(case.length, 16), DECODE_TOKENS)
        command = [sys.executable, "-m", "qlocal.cli", "bench", str(model), "--json", "--repeats", "1"]
        command += ["--threads", str(case.threads), "--prompt-tokens", str(lengths[0])]
        found = json.loads(_output([*command, "--decode-tokens", str(lengths[1])]))
        return float(found["prompt_tokens_per_s" if is_prompt else "decode_tokens_per_s"])


@dataclass(frozen=True)
class LlamaBench:
    """A folder with `llama-bench`: llama.cpp's or ik_llama.cpp's."""

    name: str
    folder: Path
    extra: tuple[str, ...] = ()

    def tokens_per_s(self, model: Path, case: Case) -> float:
        command = [str(self.folder / "llama-bench"), "-m", str(model), "-t", str(case.threads), "-r", "1", "-o", "json"]
        if case.kind == "prompt":
            command += ["-p", str(case.length), "-n", "0"]
        elif case.length == 0:
            command += ["-p", "0", "-n", str(DECODE_TOKENS)]
        else:
            command += self._at_depth(case.length)
        rows = json.loads(_output([*command, *self.extra]))
        return float(rows[-1]["avg_ts"])

    def _at_depth(self, length: int) -> list[str]:
        """ik_llama.cpp has no -d; its -gp runs a prompt first and reports the generation alone."""
        if self.name == "ik_llama.cpp":
            return ["-p", "0", "-n", "0", "-gp", f"{length},{DECODE_TOKENS}"]
        return ["-p", "0", "-n", str(DECODE_TOKENS), "-d", str(length)]


@dataclass
class Result:
    """All rounds of one case on one file. limit: tokens a second at which the machine's own limit would be reached."""

    model: str
    case: Case
    limit: float
    rates: dict[str, list[float]] = field(default_factory=dict)

    def median(self, engine: str) -> float:
        return statistics.median(self.rates[engine])


def measure(models: list[Path], engines: list[Engine], options: argparse.Namespace) -> Iterator[Result]:
    """Run everything; yields a result as soon as its rounds are done."""
    for threads in options.threads:
        limits = machine_limits(threads)
        print(f"{threads} threads: {limits}", file=sys.stderr)
        cases = [Case("decode", depth, threads) for depth in options.depths]
        cases += [Case("prompt", length, threads) for length in options.prompts]
        for model in models:
            checkpoint = open_checkpoint(model)
            token_bytes, token_operations = bytes_per_token(checkpoint), operations_per_token(checkpoint)
            for case in cases:
                decode_limit, prompt_limit = limits.read / token_bytes, limits.int8 / token_operations
                result = Result(model.name, case, prompt_limit if case.kind == "prompt" else decode_limit)
                for _ in range(options.rounds):
                    for engine in engines if model.suffix == ".gguf" else engines[:1]:
                        rates = result.rates.setdefault(engine.name, [])
                        rates.append(engine.tokens_per_s(model, case))
                yield result


@dataclass(frozen=True)
class Limits:
    """What the machine does at most: bytes read from memory and int8 operations in registers, a second."""

    read: float
    int8: float
    bf16: float

    def __str__(self) -> str:
        return f"reads {self.read / 1e9:.1f} GB/s, int8 {self.int8 / 1e12:.2f} TOPS, bf16 {self.bf16 / 1e12:.2f} TFLOPS"


def machine_limits(threads: int) -> Limits:
    """Measure the limits with as many threads as the engines are given."""
    dispatch.set_threads(threads)
    peaks = benchmark.peak_operations()
    if peaks is None:
        raise SystemExit("the native library is missing: see `qlocal doctor`")
    return Limits(benchmark.read_bandwidth(), peaks.int8, peaks.bf16)


def table(results: list[Result], engines: list[Engine]) -> str:
    """Return Markdown: a line a case, ours first, then every peer with our ratio to it."""
    peers = [engine.name for engine in engines[1:]]
    head = ["file", "threads", "", "qlocal tokens/s", "of the limit", *(f"{p} | ratio" for p in peers)]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|---:|---:|" + "---:|---:|" * len(peers)]
    for result in results:
        ours = result.median("qlocal")
        cells = [result.model, str(result.case.threads), str(result.case)]
        cells += [_spread(result.rates["qlocal"]), f"{ours / result.limit:.0%}"]
        for peer in peers:
            is_there = peer in result.rates
            cells += [_spread(result.rates[peer]), f"{ours / result.median(peer):.2f}"] if is_there else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """Return one line about the CPU that this runs on."""
    info = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in info if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    wanted = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    flags = [flag for flag in wanted if flag in values.get("flags", "").split()]
    return f"{values.get('model name', platform.machine())}, {os.cpu_count()} CPUs, {', '.join(flags)}"


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


PEERS = (("llama.cpp", "QLOCAL_LLAMA_BIN", ()), ("ik_llama.cpp", "QLOCAL_IK_BIN", ("-rtr", "1")))
"""Name, the variable with its folder, and further arguments."""


def _engines() -> list[Engine]:
    peers = [LlamaBench(name, Path(os.environ[v]), extra) for name, v, extra in PEERS if os.environ.get(v)]
    return [Ours(), *peers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--depths", nargs="*", type=int, default=[0], help="context behind which to decode")
    parser.add_argument("--prompts", nargs="*", type=int, default=[128, 512, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engines, results = _engines(), []
    for result in measure(options.models, engines, options):
        results.append(result)
        print(table([result], engines).splitlines()[-1], file=sys.stderr, flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    print(f"{machine()}\n\n{table(results, engines)}")


if __name__ == "__main__":
    main()
