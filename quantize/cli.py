"""The command `quantize`: arguments in, results or one sentence out. Heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlocal import catalog
from qlocal.cards import number_by_bus
from qlocal.clean import clean
from qlocal.devices import keep_freed_memory, keep_threads_calm
from qlocal.errors import QLocalError, QualityError, UsageError, memory_in_words
from qlocal.models.base import Architecture, ModelConfig
from quantize.arguments import Parser
from quantize.backends.base import NAMES, check_arguments
from quantize.calibration.importance import Importance
from quantize.estimate import Estimate, estimate
from quantize.gate.limits import Limits, add_limit_options
from quantize.options import FORMATS, GGUF_TYPES, MEASURED, NATIVE, Calibration, Options, check, parse_size
from quantize.recipe import Recipe, make_recipe
from quantize.source import open_source

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for an error, 3 for a failed gate, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_threads_calm()
    number_by_bus()
    keep_freed_memory()
    try:
        with memory_in_words():
            if arguments[:1] == ["verify"]:
                from quantize.verify import verify_command  # imports torch

                return verify_command(arguments[1:])
            return _quantize(arguments)
    except QLocalError as error:
        print(f"quantize: {clean(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"quantize: {clean(str(error.filename or 'a file'))}: {error.strerror or error}", file=sys.stderr)
        return QLocalError.exit_code
    except KeyboardInterrupt as stop:
        next_time = str(stop) or "the same command continues after the last finished layer"
        print(f"quantize: stopped; {next_time}", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> Parser:
    """Return the parser of `quantize SOURCE ...`; `quantize verify` has its own."""
    parser = Parser(
        prog="quantize",
        description="Turn a BF16 checkpoint into AWQ, GPTQ and GGUF checkpoints of 4 bits.",
        epilog="`quantize verify OUT --source SOURCE` holds a result against its source once more.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder of BF16 safetensors, or a name of the catalogue")
    add("--format", required=True, metavar="F[,F]", help=f"results to make: {', '.join(FORMATS)}")
    add("--out", required=True, type=Path, metavar="PATH", help="folder, or .gguf file for a single GGUF result")
    types = parser.add_mutually_exclusive_group()
    types.add_argument("--type", default="q4_k_m", metavar="T[,T]", help=f"GGUF types: {', '.join(GGUF_TYPES)}")
    types.add_argument("--target-size", metavar="SIZE", help="GGUF: types by what tensors are worth, up to SIZE")
    add("--group-size", type=int, default=128, help="columns that share a scale in AWQ and GPTQ (128, 64, 32)")
    symmetry = parser.add_mutually_exclusive_group()
    symmetry.add_argument("--sym", dest="symmetric", action="store_true", default=None, help="zero point always 8")
    symmetry.add_argument("--asym", dest="symmetric", action="store_false", help="a zero point for every group")
    add("--desc-act", action="store_true", help="GPTQ: columns in the order of their energy, remembered as g_idx")
    add("--calibration", type=Path, nargs="+", default=[], metavar="FILE", help="own texts; .jsonl for conversations")
    add("--samples", type=int, default=128, help="windows of calibration text")
    add("--seq-len", type=int, default=2048, help="tokens of a window")
    template = parser.add_mutually_exclusive_group()
    template.add_argument(
        "--chat-template", dest="raw", action="store_false", default=False, help="conversations by the template"
    )
    template.add_argument(
        "--raw", action="store_true", default=False, help="the first consecutive windows of the joined files"
    )
    hessian = parser.add_mutually_exclusive_group()
    hessian.add_argument("--hessian", action="store_true", default=True, help="GGUF: make up for errors as GPTQ does")
    hessian.add_argument("--no-hessian", dest="hessian", action="store_false", help="GGUF: the importance matrix alone")
    imatrix = parser.add_mutually_exclusive_group()
    imatrix.add_argument(
        "--imatrix",
        type=Path,
        nargs="?",
        const=True,
        metavar="FILE",
        help="GGUF: weigh columns by their inputs, or by llama.cpp's importance FILE",
    )
    imatrix.add_argument(
        "--no-imatrix", dest="imatrix", action="store_false", default=None, help="GGUF: look at weights alone"
    )
    add("--quantize-head", action="store_true", help="AWQ, GPTQ: the output head in 4 bits too")
    add("--learn", type=int, default=0, metavar="STEPS", help="AWQ, GPTQ: steps of descent after a layer is solved")
    add("--rtn", action="store_true", help="plain rounding, for comparison")
    add("--pad-ffn", default="auto", metavar="auto|none|N", help="pad the FFN with zeros to a multiple of 256")
    add("--max-memory", metavar="SIZE", help="refuse what would take more memory, such as 20GB")
    add("--device", default="auto", help="where layers are run: auto, cpu, cuda:0")
    add("--cluster", metavar="ADDRESS", help="solve layers on a Ray cluster; local or local:3 starts one here")
    add("--backend", default=NATIVE, metavar="B", help=f"whose quantizer is run: {', '.join(NAMES)}")
    add("--backend-python", type=Path, metavar="PATH", help="the interpreter that has the backend's package")
    add("--work-dir", type=Path, metavar="DIR", help="where unfinished work lies (beside PATH by default)")
    add("--shard-size", default="5GB", metavar="SIZE", help="largest safetensors file")
    add("--overwrite", action="store_true", help="replace an existing result, once the new one is complete")
    add("--dry-run", action="store_true", help="print every tensor's type and bytes, and write nothing")
    add("--no-verify", dest="verify", action="store_false", help="do not hold the result against its source in the end")
    add_limit_options(parser)
    add("--json", action="store_true", help="machine-readable output")
    return parser


def _quantize(arguments: list[str]) -> int:
    parsed = build_parser().parse_args(arguments)
    options = _options(parsed)
    check(options)
    check_arguments(options)
    if parsed.dry_run:
        if options.backend != NATIVE:
            raise UsageError("--dry-run plans what qlocal's own quantizer writes", hint="Leave out --backend.")
        architecture, config, name = _geometry(options.source)
        recipe = make_recipe(architecture, config, options, name)
        if options.imatrix_file is not None:
            Importance(options.imatrix_file, recipe)  # refuses a file that does not fit
        _print_plan(recipe, estimate(recipe, options), as_json=parsed.json)
        return 0
    path = catalog.resolve(options.source)
    checkpoint = open_source(path)
    make_recipe(checkpoint.architecture, checkpoint.config, options, path.name)  # refuses before torch is imported
    from quantize import pipeline  # imports torch, as the next
    from quantize.backends import run as backend_run
    from quantize.report.display import open_display

    quantize = pipeline.quantize if options.backend == NATIVE else backend_run.quantize
    with open_display() as display:
        outcome = quantize(checkpoint, path.name, options, display)
    _print_done(options, outcome.reports, as_json=parsed.json)
    if outcome.failures:
        raise QualityError("; ".join(outcome.failures), hint="The result stays where it is; its report shows the rest.")
    return 0


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        source=parsed.source,
        out=parsed.out.absolute(),
        formats=_names(parsed.format),
        gguf_types=(MEASURED,) if parsed.target_size else _names(parsed.type),
        target_size=parse_size(parsed.target_size, "--target-size") if parsed.target_size else None,
        group_size=parsed.group_size,
        symmetric=parsed.symmetric,
        desc_act=parsed.desc_act,
        calibration=Calibration(tuple(parsed.calibration), parsed.raw, parsed.samples, parsed.seq_len),
        imatrix=parsed.imatrix is not False,
        imatrix_file=parsed.imatrix if isinstance(parsed.imatrix, Path) else None,
        hessian=parsed.hessian,
        quantize_head=parsed.quantize_head,
        learn=parsed.learn,
        rtn=parsed.rtn,
        pad_ffn=parsed.pad_ffn,
        max_memory=parse_size(parsed.max_memory, "--max-memory") if parsed.max_memory else None,
        device=parsed.device,
        work_dir=parsed.work_dir.absolute() if parsed.work_dir else None,
        shard_bytes=parse_size(parsed.shard_size, "--shard-size"),
        overwrite=parsed.overwrite,
        cluster=parsed.cluster,
        backend=parsed.backend,
        backend_python=parsed.backend_python,
        verify=parsed.verify,
        limits=Limits.of(parsed),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(","))


def _geometry(source: str) -> tuple[Architecture, ModelConfig, str]:
    """Return the geometry of a folder, or of a catalogue entry of which nothing need be there."""
    if Path(source).exists():
        checkpoint = open_source(Path(source))
        return checkpoint.architecture, checkpoint.config, Path(source).resolve().name
    entry = catalog.entry(source)
    return entry.architecture, entry.config(), entry.name


def _print_plan(recipe: Recipe, needed: Estimate, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_plan_json(recipe, needed), indent=1))
        return
    for note in recipe.notes:
        print(note)
    for target in recipe.targets:
        print(f"\n{target.name}: {target.path}")
        for tensor in target.tensors:
            shape = " x ".join(map(str, tensor.shape))
            print(f"  {tensor.name:60} {tensor.storage:6} {shape:>24} {tensor.num_bytes:>16,}")
        print(f"  {len(target.tensors)} tensors, {target.num_bytes:,} bytes ({target.num_bytes / 2**30:.2f} GiB)")
    print(f"\nMemory at the peak: {needed.memory:,} bytes, mapped files apart")
    print(f"Of a card:          {needed.card:,} bytes, where --device takes one")
    print(f"Disk at the peak:   {needed.disk:,} bytes, of them {needed.activations:,} for activations")
    print(f"Disk in the end:    {needed.result:,} bytes")


def _plan_json(recipe: Recipe, needed: Estimate) -> dict[str, Any]:
    return {
        "notes": list(recipe.notes),
        "results": [
            {
                "name": target.name,
                "path": str(target.path),
                "tensor_bytes": target.num_bytes,
                "tensors": [
                    {"name": t.name, "type": t.storage, "shape": list(t.shape), "bytes": t.num_bytes}
                    for t in target.tensors
                ],
            }
            for target in recipe.targets
        ],
        "peak_memory_bytes": needed.memory,
        "peak_card_bytes": needed.card,
        "peak_disk_bytes": needed.disk,
        "activation_bytes": needed.activations,
        "result_bytes": needed.result,
    }


def _print_done(options: Options, reports: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"out": str(options.out), "results": reports}, indent=1))
        return
    for report in reports:
        size = f"{report['tensor_bytes']:,} bytes, {report['bits_per_weight']:.3f} bits a weight"
        loss = "" if report["mean_loss"] is None else f", mean loss {report['mean_loss']:.5f}"
        print(f"{report['result']}: {size}{loss}{_gate_words(report.get('verify'))}")
    print(f"Written: {options.out}")


def _gate_words(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    return (
        f", mean KL {gate['mean_kl']:.5f} and top-1 {gate['top1']:.4f} of its source" if gate["passed"] else ", failed"
    )


if __name__ == "__main__":
    sys.exit(main())
