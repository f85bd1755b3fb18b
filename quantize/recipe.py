"""Which tensor is written in which type: everything about the results that follows from the headers. No torch.

`make_recipe` settles group size, padding and types, and remembers in `notes` what it had to decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qlocal.errors import UsageError
from qlocal.formats.described import FFN_MULTIPLE
from qlocal.formats.gguf_writer import GgufEntry
from qlocal.formats.quantization_config import QuantizationConfig
from qlocal.formats.safetensors_writer import TensorEntry
from qlocal.formats.type_mix import MIXES, choose_types, gguf_entries
from qlocal.ggml_types import GgmlType
from qlocal.models.base import Architecture, ModelConfig, TensorSpec
from quantize.options import GROUP_SIZES, MEASURED, Options
from quantize.type_choice import check_room, smallest_types

HEAD_UNIT = "head"
"""The unit of work beside the decoder layers: embedding, final norm and output head."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of a result. name: as in the file, without the parts of a quantized linear.

    storage: `awq`, `gptq`, `f16` or a GGML type's name in lower case. shape: the model's, experts stacked in GGUF.
    """

    name: str
    storage: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class Target:
    """One result. name: `awq`, `gptq` or the GGUF type; path: where it goes in the end (a folder, or a .gguf file).
    settings: of a folder. types, file_type: of a GGUF file."""

    name: str
    format: str
    path: Path
    tensors: tuple[PlannedTensor, ...]
    settings: QuantizationConfig | None = None
    types: dict[str, GgufEntry] | None = None
    file_type: int | None = None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class Recipe:
    """The plan of a call. config: with the padded FFN; source_config: as in the source. notes: decisions to say."""

    architecture: Architecture
    source_config: ModelConfig
    config: ModelConfig
    group_size: int
    targets: tuple[Target, ...]
    notes: tuple[str, ...]

    @property
    def units(self) -> list[str]:
        """The units of work in order: `0`, `1`, ..., `head`."""
        return [*map(str, range(self.config.num_hidden_layers)), HEAD_UNIT]

    def config_of(self, target: Target) -> ModelConfig:
        """Return the geometry of one result, whose head may be untied."""
        return stored_config(self.config, target.settings)


def make_recipe(
    architecture: Architecture,
    source_config: ModelConfig,
    options: Options,
    name: str,
    measured: Mapping[str, GgmlType] | None = None,
) -> Recipe:
    """Decide everything that needs no weights. `name`: the source's, for the file names of several results.

    measured: the types that were chosen for --target-size, by GGUF name; the smallest ones until they are.
    """
    config, notes = padded_config(source_config, options.pad_ffn)
    group_size = options.group_size
    if set(options.formats) & {"awq", "gptq"}:
        group_size, note = fitting_group_size(architecture, config, options.group_size)
        notes += note
    if options.quantize_head:
        notes += _head_notes(config)
    targets = [*_folder_targets(architecture, config, options, group_size, name)]
    if options.target_size is not None:
        target = _measured_target(architecture, config, outputs(options, name)[MEASURED], measured)
        if measured is None:
            check_room(target.num_bytes, options.target_size)
            notes += _size_notes(options.target_size)
        targets.append(target)
    elif "gguf" in options.formats:
        targets += _gguf_targets(architecture, config, options, name)
    return Recipe(architecture, source_config, config, group_size, tuple(targets), tuple(notes))


def padded_config(config: ModelConfig, pad_ffn: str) -> tuple[ModelConfig, list[str]]:
    """Return the geometry with the FFN padded as asked, and what was decided."""
    width = config.intermediate_size
    if pad_ffn == "none":
        return config, []
    padded = -(-width // FFN_MULTIPLE) * FFN_MULTIPLE if pad_ffn == "auto" else int(pad_ffn)
    if padded < width:
        raise UsageError(f"--pad-ffn {padded} is smaller than the FFN, which has {width} columns")
    if padded == width:
        return config, []
    note = f"The FFN is padded from {width} to {padded} columns with exact zeros; the model computes the same."
    return replace(config, intermediate_size=padded), [note]


def fitting_group_size(architecture: Architecture, config: ModelConfig, wanted: int) -> tuple[int, list[str]]:
    """Return the largest group size up to `wanted` that divides the inputs of every linear."""
    linears = [spec for spec in architecture.tensors(config) if spec.is_quantized]
    widths = sorted({spec.shape[1] for spec in linears})
    if any(spec.shape[0] % 8 for spec in linears):
        rows = sorted({spec.shape[0] for spec in linears if spec.shape[0] % 8})
        raise UsageError(f"a linear with {rows[0]} outputs cannot be packed: AWQ and GPTQ need a multiple of 8")
    for size in GROUP_SIZES:
        if size <= wanted and all(width % size == 0 for width in widths):
            if size == wanted:
                return size, []
            shown = ", ".join(map(str, (w for w in widths if w % wanted)))
            return size, [f"Group size {size} instead of {wanted}, which does not divide the widths {shown}."]
    raise UsageError(
        f"no group size of 128, 64 or 32 divides the widths {', '.join(map(str, widths))}",
        hint="Choose GGUF, or pad the FFN with --pad-ffn.",
    )


def stored_config(config: ModelConfig, settings: QuantizationConfig | None) -> ModelConfig:
    """Return the geometry of a result: a head in codes is a tensor of its own, whatever the source shares with it."""
    has_own_head = settings is not None and settings.head is not None
    return replace(config, tie_word_embeddings=False) if has_own_head else config


def _head_notes(config: ModelConfig) -> list[str]:
    """Return what a head in codes changes beside itself. UsageError for one that cannot be packed."""
    if config.vocab_size % 8:
        raise UsageError(
            f"--quantize-head: a head with {config.vocab_size} outputs cannot be packed, which takes a multiple of 8"
        )
    if not config.tie_word_embeddings:
        return []
    return ["The head, which shares the embedding's table, becomes a tensor of its own in AWQ and GPTQ."]


def hf_entries(architecture: Architecture, config: ModelConfig, settings: QuantizationConfig) -> dict[str, TensorEntry]:
    """Return every stored tensor of an AWQ or GPTQ folder in file order."""
    entries = {}
    for spec in architecture.tensors(stored_config(config, settings)):
        entries.update(stored_entries(spec, settings))
    return entries


def stored_entries(spec: TensorSpec, settings: QuantizationConfig) -> dict[str, TensorEntry]:
    """Return what the folder stores for one tensor of the table: the parts of a linear, or the tensor in F16."""
    own = settings.of(spec)
    if own is None:
        return {spec.name: TensorEntry("F16", spec.shape)}
    rows, columns = spec.shape
    groups = columns // own.groups(columns)
    along_rows = own.method == "awq"
    parts = {
        "qweight": TensorEntry("I32", (columns, rows // 8) if along_rows else (columns // 8, rows)),
        "qzeros": TensorEntry("I32", (groups, rows // 8)),
        "scales": TensorEntry("F16", (groups, rows)),
    }
    if own.method == "gptq":
        parts["g_idx"] = TensorEntry("I32", (columns,))
    return {f"{spec.module}.{part}": entry for part, entry in parts.items()}


def unit_specs(architecture: Architecture, config: ModelConfig, unit: str) -> list[TensorSpec]:
    """Return the tensors of one unit of work: a decoder layer, or everything beside the layers."""
    if unit != HEAD_UNIT:
        return list(architecture.layer_tensors(config, int(unit)))
    return list(architecture.tensors(replace(config, num_hidden_layers=0)))


def outputs(options: Options, name: str) -> dict[str, Path]:
    """Return where each result goes, by target name. One result is `--out` itself, several lie in it."""
    names = [f for f in options.formats if f != "gguf"]
    types = options.gguf_types if "gguf" in options.formats else ()
    if len(names) + len(types) == 1:
        if types and options.out.suffix != ".gguf":
            raise UsageError(f"--out {options.out}: one GGUF result is a file", hint="Give it a name in .gguf.")
        return {(names or list(types))[0]: options.out}
    if options.out.suffix == ".gguf":
        raise UsageError(f"--out {options.out}: several results need a folder, not a .gguf file")
    folders = {n: options.out / n for n in names}
    return folders | {t: options.out / f"{name}-{t}.gguf" for t in types}


def _folder_targets(
    architecture: Architecture, config: ModelConfig, options: Options, group_size: int, name: str
) -> Iterator[Target]:
    paths = outputs(options, name)
    for format_name in sorted(set(options.formats) - {"gguf"}):
        settings = _settings(format_name, options, group_size)
        tensors = tuple(_hf_tensors(architecture, config, settings))
        yield Target(format_name, format_name, paths[format_name], tensors, settings)


def _gguf_targets(architecture: Architecture, config: ModelConfig, options: Options, name: str) -> Iterator[Target]:
    paths = outputs(options, name)
    for mix in options.gguf_types:
        types = choose_types(architecture, config, mix, has_imatrix=options.imatrix and not options.rtn)
        yield _gguf_target(mix, paths[mix], gguf_entries(architecture, config, types), MIXES[mix].file_type)


def _measured_target(
    architecture: Architecture, config: ModelConfig, path: Path, measured: Mapping[str, GgmlType] | None
) -> Target:
    """Return the file that --target-size asks for; `general.file_type` is that of most of its bytes."""
    types = choose_types(architecture, config, "f16", has_imatrix=True)
    types |= smallest_types(architecture, config) if measured is None else measured
    entries = gguf_entries(architecture, config, types)
    sizes = Counter[GgmlType]()
    for entry in entries:
        sizes[entry.ggml_type] += entry.num_bytes
    file_types = {mix.default: mix.file_type for mix in MIXES.values()}
    return _gguf_target(MEASURED, path, entries, file_types[max(sizes, key=sizes.__getitem__)])


def _gguf_target(name: str, path: Path, entries: list[GgufEntry], file_type: int) -> Target:
    planned = tuple(PlannedTensor(e.name, e.ggml_type.name.lower(), e.shape, e.num_bytes) for e in entries)
    return Target(name, "gguf", path, planned, types={e.name: e for e in entries}, file_type=file_type)


def _size_notes(target_size: int) -> list[str]:
    return [
        f"Types are chosen by what each tensor is worth, which is measured first, for a file of {target_size:,} bytes."
    ]


def _settings(format_name: str, options: Options, group_size: int) -> QuantizationConfig:
    symmetric = options.is_symmetric(format_name)
    if format_name == "awq":
        settings = QuantizationConfig("awq", group_size, symmetric, "gemm")
    else:
        # Asymmetric version 1 borrows across zero points; version 2 says plainly what is meant.
        version = "gptq" if symmetric else "gptq_v2"
        settings = QuantizationConfig("gptq", group_size, symmetric, version, options.desc_act)
    return replace(settings, head=settings) if options.quantize_head else settings


def _hf_tensors(
    architecture: Architecture, config: ModelConfig, settings: QuantizationConfig
) -> Iterator[PlannedTensor]:
    for spec in architecture.tensors(stored_config(config, settings)):
        size = sum(entry.num_bytes for entry in stored_entries(spec, settings).values())
        yield PlannedTensor(spec.name, settings.method if settings.of(spec) else "f16", spec.shape, size)
