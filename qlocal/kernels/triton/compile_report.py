"""Every form of the kernels compiled ahead of time, without a card: what each takes of one.

The compiler needs no NVIDIA driver. It says whether a kernel can be started at all (shared memory), and whether the
registers suffice (spills); how quick it is, only a card can say.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from qlocal.kernels.triton import gemm, gemv
from qlocal.kernels.triton.decode import COMPILER_OPTIONS, kind_constants
from qlocal.kernels.triton.layout import GROUP_SIZES, Kind

ARCHITECTURES = (86, 89, 90, 120)
"""RTX 3090, RTX 4090, H100 and RTX 5090."""

# One number of tokens for every configuration there is.
_GEMV_TOKENS = (1, 8, 16)
_GEMM_TOKENS = (32, 64, 512)

_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Variant:
    """One form of a kernel: group_size in columns, num_tokens the most it is used for."""

    kernel: str
    kind: Kind
    group_size: int
    num_tokens: int
    x_dtype: torch.dtype = torch.bfloat16
    scale_dtype: torch.dtype = torch.float16

    @property
    def type_name(self) -> str:
        return f"{self.kind.value} g{self.group_size}" if self.kind is Kind.AFFINE else self.kind.value


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes: shared_bytes a program, registers a thread, spilled_bytes stored and loaded."""

    variant: Variant
    architecture: int
    num_warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int


def variants() -> Iterator[Variant]:
    """Yield every kind of weight for every configuration, and what is special once: bf16 scales, float32 tokens."""
    weights = [(Kind.AFFINE, group_size) for group_size in GROUP_SIZES]
    weights += [(kind, 16 if kind is Kind.Q6_K else 32) for kind in Kind if kind is not Kind.AFFINE]
    for kernel, counts in (("gemv", _GEMV_TOKENS), ("gemm", _GEMM_TOKENS)):
        for kind, group_size in weights:
            for num_tokens in counts:
                yield Variant(kernel, kind, group_size, num_tokens)
        yield Variant(kernel, Kind.AFFINE, 128, counts[-1], scale_dtype=torch.bfloat16)
        yield Variant(kernel, Kind.AFFINE, 128, counts[-1], x_dtype=torch.float32)


def report(chosen: Iterable[Variant], architectures: Iterable[int]) -> Iterator[Usage]:
    """Compile every variant for every architecture (86 is sm_86). Takes one to three seconds each."""
    for architecture in architectures:
        for variant in chosen:
            yield compile_variant(variant, architecture)


def compile_variant(variant: Variant, architecture: int) -> Usage:
    """Compile for a card that need not be there."""
    kernel, constants, num_warps = _kernel_of(variant)
    constants |= kind_constants(variant.kind, variant.group_size)
    signature = {name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}
    for name, pointer in _pointers(variant).items():
        signature[name] = "constexpr" if pointer is None else pointer
        if pointer is None:
            constants[name] = None
    # As at run time: allocations are aligned, and the sizes of real models are multiples of 16.
    aligned = [name for name in kernel.arg_names if signature[name].startswith("*") or name in ("N", "K")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps, **COMPILER_OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, spilled_bytes = _assemble(compiled.asm["ptx"], architecture)
    return Usage(variant, architecture, num_warps, compiled.metadata.shared, registers, spilled_bytes)


def _kernel_of(variant: Variant) -> tuple[triton.JITFunction, dict[str, str | int | bool | None], int]:
    if variant.kernel == "gemv":
        gemv_config = gemv.config_for(variant.num_tokens)
        return gemv.gemv_kernel, {**gemv_config.constants(variant.num_tokens)}, gemv_config.num_warps
    gemm_config = gemm.config_for(variant.num_tokens, variant.x_dtype)
    return gemm.gemm_kernel, {**gemm_config.constants()}, gemm_config.num_warps


def _pointers(variant: Variant) -> dict[str, str | None]:
    kind = variant.kind
    fields = {Kind.AFFINE: "*u8", Kind.Q4_K: "*i16", Kind.Q5_K: "*i16", Kind.Q6_K: "*i32"}
    return {
        "x_ptr": _POINTERS[variant.x_dtype],
        "codes_ptr": "*i32",
        "high_ptr": {Kind.Q5_K: "*u8", Kind.Q6_K: "*i16"}.get(kind),
        "scales_ptr": _POINTERS[variant.scale_dtype],
        "fields_ptr": fields.get(kind),
        "sums_ptr" if variant.kernel == "gemv" else "out_ptr": "*fp32",
    }


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
