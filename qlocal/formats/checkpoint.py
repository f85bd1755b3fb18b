"""Open a checkpoint of any format; which one it is, its content says, not its name."""

from __future__ import annotations

from pathlib import Path

from qlocal.errors import FormatError
from qlocal.formats import hf_checkpoint
from qlocal.formats.base import Checkpoint
from qlocal.formats.gguf_checkpoint import GgufCheckpoint
from qlocal.formats.gguf_values import MAGIC
from qlocal.formats.mapped_file import MappedFile


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face folder or a GGUF file. Headers alone are read, torch is not imported.

    FormatError or ConfigError names what is wrong with a file, CheckpointError lists every tensor that does not
    match the architecture's table.
    """
    path = Path(path)
    if path.is_dir():
        return hf_checkpoint.open_folder(path)
    if not path.exists():
        raise FormatError(f"{path}: there is no such file or folder")
    file = MappedFile(path, follow_links=True)
    if file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC:
        return GgufCheckpoint.open(path)
    raise FormatError(
        f"{path.name}: is neither a folder nor a GGUF file",
        hint="Give the folder with config.json and the safetensors files, or a .gguf file.",
    )
