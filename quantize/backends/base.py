"""The packages that `--backend` runs: what they make, and which of our options have no counterpart there. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from qlocal.errors import UsageError
from quantize.options import NATIVE, Options

_UNDERSTOOD = {
    *("source", "out", "formats", "group_size", "symmetric", "desc_act", "calibration", "device", "work_dir"),
    *("shard_bytes", "overwrite", "verify", "limits", "backend", "backend_python"),
}
"""Options that every backend follows, or that are about what comes before and after it."""
_FLAGS = {
    "gguf_types": "--type",
    "imatrix": "--no-imatrix",
    "imatrix_file": "--imatrix FILE",
    "hessian": "--no-hessian",
}
"""Flags that are not their option's name."""
INSTALL = "Install it with: pip install 'qlocal[interop]', or name an interpreter that has it by --backend-python"
OLD_AUTOAWQ = "pip install autoawq==0.2.9 transformers==4.51.3"


@dataclass(frozen=True)
class Backend:
    """A package with a quantizer. package: as its metadata spells it; at_least: its oldest version that takes our
    arguments; reported: packages whose versions stand in the report, the package itself first; has_symmetric: whether
    it can leave zero points out; old_models: what it reads with transformers 4 alone."""

    title: str
    package: str
    at_least: tuple[int, int]
    formats: tuple[str, ...]
    reported: tuple[str, ...]
    has_symmetric: bool = True
    old_models: tuple[str, ...] = ()

    @property
    def names(self) -> str:
        """What it makes, as options spell it."""
        return " and ".join(self.formats)

    def tool(self, versions: Mapping[str, str]) -> str:
        """Return the package with its version, and those of the packages that it computes with."""
        others = ", ".join(f"{name} {versions[name]}" for name in self.reported[1:] if name in versions)
        return f"{self.title} {versions[self.package]}" + (f" ({others})" if others else "")

    def check(self, versions: Mapping[str, str], model_type: str, where: str) -> None:
        """UsageError when what the interpreter `where` has is absent, too old, or too new for such a model."""
        if self.package not in versions:
            raise UsageError(f"--backend {self.package}: {where} has no package {self.package}", hint=INSTALL)
        version, transformers = versions[self.package], versions.get("transformers", "")
        if _numbers(version) < self.at_least:
            needed = ".".join(map(str, self.at_least))
            raise UsageError(f"{where} has {self.title} {version}, at least {needed} is needed", hint=INSTALL)
        if model_type in self.old_models and _numbers(transformers) >= (5,):
            raise UsageError(
                f"{self.title} reads {model_type} with transformers 4 alone, and {where} has {transformers}",
                hint=f"Choose --backend gptqmodel, or a --backend-python with other packages: {OLD_AUTOAWQ}",
            )


BACKENDS = {
    "gptqmodel": Backend("GPTQModel", "gptqmodel", (7, 7), ("awq", "gptq"), ("gptqmodel", "transformers", "torch")),
    "autoawq": Backend(
        "AutoAWQ",
        "autoawq",
        (0, 2),
        ("awq",),
        ("autoawq", "transformers", "torch"),
        has_symmetric=False,
        old_models=("mixtral",),
    ),
}
NAMES = (NATIVE, *BACKENDS)


def check_arguments(options: Options) -> None:
    """Raise UsageError for what the backend does not make, and for options it has no counterpart for."""
    if options.backend == NATIVE:
        if options.backend_python is not None:
            raise UsageError(f"--backend-python belongs to --backend {' and '.join(BACKENDS)}")
        return
    if options.backend not in BACKENDS:
        raise UsageError(f"--backend {options.backend[:40]!r} is unknown", hint=f"Known: {', '.join(NAMES)}.")
    backend = BACKENDS[options.backend]
    for name in options.formats:
        _check_format(name, backend)
    if options.pad_ffn not in ("auto", "none"):
        _refuse(f"--pad-ffn {options.pad_ffn}", backend)
    if options.symmetric and not backend.has_symmetric:
        _refuse("--sym", backend)
    for field in fields(options):
        if field.name in _UNDERSTOOD or field.name == "pad_ffn" or getattr(options, field.name) == _default(field):
            continue
        _refuse(_FLAGS.get(field.name, "--" + field.name.replace("_", "-")), backend)


def _check_format(name: str, backend: Backend) -> None:
    if name in backend.formats:
        return
    able = [key for key, other in BACKENDS.items() if name in other.formats]
    hint = f"Choose --backend {able[0]}." if able else "Leave out --backend: qlocal makes it itself."
    raise UsageError(f"--format {name}: {backend.title} makes {backend.names} alone", hint=hint)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _refuse(flag: str, backend: Backend) -> None:
    raise UsageError(
        f"{flag} has no counterpart in {backend.title}",
        hint="Leave it out, or leave out --backend: it belongs to qlocal's own quantizer.",
    )


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
