"""A small JSON file of a checkpoint's folder, read by `strict_json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlocal.formats.mapped_file import read_small_file
from qlocal.strict_json import parse_json_object

MAX_CONFIG_BYTES = 4 << 20


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the object in the file `path`; FormatError when it is missing, too large or not an object."""
    return parse_json_object(read_small_file(path, max_bytes), path.name)
