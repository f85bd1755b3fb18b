"""The stored vectors of `tests/golden/formats` as tensors."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "formats"


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return content


def tensor(entry: dict[str, Any]) -> torch.Tensor:
    """Return the array of {dtype, shape, b64}."""
    raw = np.frombuffer(base64.b64decode(entry["b64"]), dtype=entry["dtype"])
    return torch.from_numpy(raw.reshape(entry["shape"]).copy())
