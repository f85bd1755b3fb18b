"""What the user asked for, checked before anything is read. No torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qlocal.errors import UsageError
from quantize.gate.limits import Limits

FORMATS = ("awq", "gptq", "gguf")
GROUP_SIZES = (128, 64, 32)
NATIVE = "native"
"""The backend that is this package."""
GGUF_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
MEASURED = "measured"
"""What a GGUF result is called whose types --target-size has chosen."""
DAMP, DAMP_OF_O = 0.25, 0.1
"""Error feedback: share of the mean diagonal that is added to it. More than the usual 0.01, for what calibration does
not show; `o` reads averages of values, which differ less between texts (docs/quantizing.md)."""
MAX_LEARN_STEPS = 10_000

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True)
class Calibration:
    """Which texts the inputs come from. files: empty for the shipped set. raw: consecutive windows of the joined
    files, without a chat template. num_samples windows of seq_len tokens."""

    files: tuple[Path, ...] = ()
    raw: bool = False
    num_samples: int = 128
    seq_len: int = 2048


@dataclass(frozen=True)
class Options:
    """One call of `quantize`. symmetric: None takes the format's habit (AWQ asymmetric, GPTQ symmetric).
    target_size: bytes of a GGUF file whose types are chosen by measurement; `gguf_types` is MEASURED alone then.
    imatrix: whether GGUF weighs columns; imatrix_file: by this file, not by the calibration inputs. quantize_head: AWQ
    and GPTQ store the head in codes too. pad_ffn: `auto`, `none` or the number of columns. shard_bytes, max_memory:
    bytes. learn: steps of descent after a layer of AWQ or GPTQ is solved. verify: hold the result against the source in
    the end, by these limits. cluster: `local`, `local:3`, or the address of a Ray cluster that solves the layers.
    backend: whose quantizer is run; backend_python: the interpreter that has it, None for this one."""

    source: str
    out: Path
    formats: tuple[str, ...]
    gguf_types: tuple[str, ...] = ("q4_k_m",)
    target_size: int | None = None
    group_size: int = 128
    symmetric: bool | None = None
    desc_act: bool = False
    calibration: Calibration = Calibration()
    imatrix: bool = True
    imatrix_file: Path | None = None
    hessian: bool = True
    quantize_head: bool = False
    learn: int = 0
    rtn: bool = False
    pad_ffn: str = "auto"
    max_memory: int | None = None
    device: str = "auto"
    work_dir: Path | None = None
    shard_bytes: int = 5 * 10**9
    overwrite: bool = False
    cluster: str | None = None
    backend: str = NATIVE
    backend_python: Path | None = None
    verify: bool = True
    limits: Limits = field(default_factory=Limits)

    @property
    def needs_calibration(self) -> bool:
        """Whether inputs are looked at: plain rounding, and GGUF without a matrix, take the weights alone."""
        return not self.rtn and (self.formats != ("gguf",) or self.measures_importance)

    @property
    def measures_importance(self) -> bool:
        """Whether GGUF weighs columns by the calibration inputs."""
        return self.imatrix and self.imatrix_file is None

    @property
    def uses_hessian(self) -> bool:
        """Whether GGUF is made with error feedback, for which the inputs' matrices are needed."""
        return "gguf" in self.formats and self.hessian and self.measures_importance and not self.rtn

    @property
    def work_folder(self) -> Path:
        """Where layers wait until the result is assembled; beside the result unless told otherwise."""
        return self.work_dir or self.out.with_name(self.out.name + ".partial")

    def is_symmetric(self, format_name: str) -> bool:
        return self.symmetric if self.symmetric is not None else format_name == "gptq"

    def fingerprint(self) -> dict[str, Any]:
        """Return every option that changes the result, for the journal."""
        values = asdict(self)
        others = ("overwrite", "cluster", "max_memory", "calibration", "verify", "limits")
        for name in ("source", "out", "imatrix_file", "work_dir", "backend_python", *others):
            del values[name]
        calibration = self.calibration
        windows = {"raw": calibration.raw, "samples": calibration.num_samples, "seq_len": calibration.seq_len}
        return values | {f"calibration {name}": value for name, value in windows.items()}


def check(options: Options) -> None:
    """Raise UsageError for values and combinations that cannot be meant."""
    for name in options.formats:
        _one_of("--format", name, FORMATS)
    for name in options.gguf_types:
        _one_of("--type", name, GGUF_TYPES if options.target_size is None else (MEASURED,))
    for flag, names in (("--format", options.formats), ("--type", options.gguf_types)):
        if len(set(names)) != len(names) or not names:
            raise UsageError(f"{flag} {','.join(names)}: each may stand there once")
    if options.group_size not in GROUP_SIZES:
        raise UsageError(f"--group-size is {options.group_size}, expected one of 128, 64, 32")
    if options.desc_act and "gptq" not in options.formats:
        raise UsageError("--desc-act belongs to --format gptq")
    if options.desc_act and options.rtn:
        raise UsageError("--desc-act orders columns by their inputs, and --rtn looks at none")
    if options.quantize_head and not set(options.formats) & {"awq", "gptq"}:
        raise UsageError("--quantize-head belongs to --format awq and gptq", hint="In GGUF the head has a --type.")
    _check_range("--learn", options.learn, 0, MAX_LEARN_STEPS)
    if options.learn and not set(options.formats) & {"awq", "gptq"}:
        raise UsageError("--learn belongs to --format awq and gptq")
    if options.learn and options.rtn:
        raise UsageError("--learn looks at the outputs of layers, and --rtn at the weights alone")
    _check_gguf(options)
    _check_pad(options.pad_ffn)
    check_device(options.device)
    _check_range("--samples", options.calibration.num_samples, 1, 1 << 20)
    _check_range("--seq-len", options.calibration.seq_len, 16, 1 << 20)
    _check_range("--shard-size", options.shard_bytes, 1 << 20, 1 << 50)
    if options.calibration.raw and not options.calibration.files:
        raise UsageError("--raw takes windows of your files", hint="Name them with --calibration FILE.")
    if options.cluster is not None:
        local_workers(options.cluster)
    if options.work_dir is not None and _is_inside(options.work_dir, options.out):
        raise UsageError(f"--work-dir {options.work_dir} lies in --out {options.out}")


def _check_gguf(options: Options) -> None:
    if options.imatrix_file is not None and "gguf" not in options.formats:
        raise UsageError("--imatrix FILE belongs to --format gguf")
    if options.imatrix_file is not None and options.rtn:
        raise UsageError("--imatrix FILE weighs columns, and --rtn looks at the weights alone")
    if options.target_size is None:
        return
    if options.formats != ("gguf",):
        raise UsageError("--target-size belongs to --format gguf, alone")
    if options.rtn or not options.measures_importance:
        flag = "--rtn" if options.rtn else "--imatrix FILE" if options.imatrix_file else "--no-imatrix"
        raise UsageError(f"--target-size measures tensors by the calibration texts, and {flag} leaves these out")


def check_device(name: str) -> None:
    """Raise UsageError for what names no device; whether it is there, torch knows."""
    if _DEVICE.fullmatch(name) is None:
        raise UsageError(f"--device is {name[:40]!r}, expected auto, cpu or cuda:0")


def local_workers(cluster: str) -> int | None:
    """Return how many workers `--cluster local:N` starts here, 0 for `local` (as many as there are cores), and None
    for the address of a cluster that runs already."""
    name, _, number = cluster.partition(":")
    if name != "local":
        return None
    if number and not (number.isascii() and number.isdigit() and 0 < int(number) <= 256):
        raise UsageError(f"--cluster is {cluster[:40]!r}, expected local, local:3 or the address of a Ray cluster")
    return int(number or 0)


def parse_size(text: str, flag: str) -> int:
    """Return bytes for `5GB`, `512MiB`, `20G` (powers of 1000; of 1024 with an i)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{flag} is {text[:40]!r}, expected a size such as 5GB or 512MiB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{flag} {value[:40]!r} is unknown", hint=f"Known: {', '.join(known)}.")


def _check_range(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{flag} is {value}, expected {low} to {high}")


def _check_pad(text: str) -> None:
    if text not in ("auto", "none") and not (text.isascii() and text.isdigit() and 0 < int(text) <= 1 << 20):
        raise UsageError(f"--pad-ffn is {text[:40]!r}, expected auto, none or a number of columns")


def _is_inside(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())
