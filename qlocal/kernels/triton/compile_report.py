"""Kernels compiled ahead of time, without a card: what each takes of one. Which there are, `forms.py` says.

The compiler needs no NVIDIA driver. It says whether a kernel can be started at all (shared memory), and whether the
registers suffice (spills); how quick it is, only a card can say.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from qlocal.kernels.triton.decode import COMPILER_OPTIONS

ARCHITECTURES = (86, 89, 90, 120)
"""RTX 3090, RTX 4090, H100 and RTX 5090."""

Constants = Mapping[str, str | int | bool | None]


@dataclass(frozen=True)
class Form:
    """One form of a kernel: its name, what it is compiled for in words, and the most tokens it is used for.

    pointers: the type of every pointer argument, or None for one that is not given. aligned: integer arguments that are
    multiples of 16 in real models. floats: arguments that are floats; all others are integers."""

    name: str
    what: str
    num_tokens: int
    function: triton.JITFunction
    pointers: Mapping[str, str | None]
    constants: Constants
    num_warps: int
    aligned: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a compiled form takes: shared_bytes a program, registers a thread, spilled_bytes stored and loaded.
    int8_products: instructions of tensor cores that multiply 8 bits."""

    name: str
    what: str
    num_tokens: int
    architecture: int
    num_warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    int8_products: int


def report(chosen: Iterable[Form], architectures: Iterable[int]) -> Iterator[Usage]:
    """Compile every form for every architecture (86 is sm_86). Takes one to three seconds each."""
    for architecture in architectures:
        for form in chosen:
            yield compile_form(form, architecture)


def compile_form(form: Form, architecture: int) -> Usage:
    """Compile for a card that need not be there."""
    names = form.function.arg_names
    constants = dict(form.constants) | {name: None for name, pointer in form.pointers.items() if pointer is None}
    signature = {name: "constexpr" if name in constants else "i32" for name in names}
    signature |= {name: pointer for name, pointer in form.pointers.items() if pointer is not None}
    signature |= dict.fromkeys(form.floats, "fp32")
    # As at run time: allocations are aligned.
    aligned = [name for name in names if signature[name].startswith("*") or name in form.aligned]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(form.function, signature, constants, attributes)
    options = {"num_warps": form.num_warps, **COMPILER_OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, spilled_bytes = _assemble(ptx, architecture)
    int8_products = len(re.findall(r"mma[^\n;]*\.s8\.s8", ptx))
    shared_bytes = compiled.metadata.shared
    what = (form.name, form.what, form.num_tokens)
    return Usage(*what, architecture, form.num_warps, shared_bytes, registers, spilled_bytes, int8_products)


def _assemble(ptx: str, architecture: int) -> tuple[int, int]:
    """Return registers a thread and bytes of spills, as Triton's own ptxas reports them."""
    name = f"sm_{architecture}{'a' if architecture >= 90 else ''}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [get_ptxas(architecture).path, "-v", f"--gpu-name={name}", str(path), "-o", f"{path}.cubin"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.search(r"Used (\d+) registers", log)
    assert registers is not None, f"ptxas -v says how many registers a kernel uses: {log}"
    return int(registers[1]), sum(int(count) for count in re.findall(r"(\d+) bytes spill", log))
