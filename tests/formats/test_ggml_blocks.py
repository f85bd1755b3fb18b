"""Block bytes against llama.cpp's, bit for bit, and against the gguf package's values.

The fields are taken out of llama.cpp's blocks by a slow reading of the definitions, and packed again.
"""

import base64
from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch

from qlocal.formats import ggml_blocks
from qlocal.ggml_types import LAYOUTS, GgmlType
from tests.formats import golden

VECTORS = golden.load("ggml_blocks.json")
Fields = dict[str, np.ndarray]


def _f16(block: np.ndarray, at: int) -> np.float16:
    return block[at : at + 2].view(np.float16)[0]


def _nibbles(data: np.ndarray) -> np.ndarray:
    """Low nibbles of all bytes, then the high ones."""
    return np.concatenate([data & 15, data >> 4])


def _q4_0(b: np.ndarray) -> Fields:
    return {"d": _f16(b, 0), "codes": _nibbles(b[2:])}


def _q4_1(b: np.ndarray) -> Fields:
    return {"d": _f16(b, 0), "m": _f16(b, 2), "codes": _nibbles(b[4:])}


def _fifth(data: np.ndarray) -> np.ndarray:
    word = int(data.copy().view("<u4")[0])
    return np.array([(word >> j & 1) << 4 for j in range(32)], dtype=np.uint8)


def _q5_0(b: np.ndarray) -> Fields:
    return {"d": _f16(b, 0), "codes": _nibbles(b[6:]) | _fifth(b[2:6])}


def _q5_1(b: np.ndarray) -> Fields:
    return {"d": _f16(b, 0), "m": _f16(b, 2), "codes": _nibbles(b[8:]) | _fifth(b[4:8])}


def _q8_0(b: np.ndarray) -> Fields:
    return {"d": _f16(b, 0), "codes": b[2:].view(np.int8)}


def _k_scales(b: np.ndarray) -> Fields:
    low = [(b[j] & 63, b[j + 4] & 63) for j in range(4)]
    high = [((b[j + 4] & 15) | (b[j - 4] >> 6) << 4, (b[j + 4] >> 4) | (b[j] >> 6) << 4) for j in range(4, 8)]
    scales, mins = zip(*low, *high, strict=True)
    return {"scales": np.array(scales, np.uint8), "mins": np.array(mins, np.uint8)}


def _q4_k(b: np.ndarray) -> Fields:
    codes = np.concatenate([_nibbles(b[16 + 32 * r : 48 + 32 * r]) for r in range(4)])
    return {"d": _f16(b, 0), "dmin": _f16(b, 2), **_k_scales(b[4:16]), "codes": codes}


def _q5_k(b: np.ndarray) -> Fields:
    codes = np.concatenate([_nibbles(b[48 + 32 * r : 80 + 32 * r]) for r in range(4)])
    high = np.concatenate([(b[16:48] >> i & 1) << 4 for i in range(8)])
    return {"d": _f16(b, 0), "dmin": _f16(b, 2), **_k_scales(b[4:16]), "codes": codes | high}


def _q6_k(b: np.ndarray) -> Fields:
    codes = np.zeros(256, np.uint8)
    for h in range(2):
        for r in range(4):
            for lane in range(32):
                low = b[64 * h + 32 * (r % 2) + lane] >> (4 * (r // 2)) & 15
                high = b[128 + 32 * h + lane] >> (2 * r) & 3
                codes[128 * h + 32 * r + lane] = low | high << 4
    return {"d": _f16(b, 208), "scales": b[192:208].view(np.int8), "codes": codes}


READERS: dict[str, Callable[[np.ndarray], Fields]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


def _repacked(name: str, rows: np.ndarray) -> np.ndarray:
    """Take (N, row_bytes) apart into fields and pack them again."""
    blocks = rows.reshape(-1, LAYOUTS[GgmlType[name]].block_bytes)
    fields = [READERS[name](b) for b in blocks]
    joined = {
        key: torch.from_numpy(np.stack([np.atleast_1d(f[key]) for f in fields]).reshape(len(rows), -1).copy())
        for key in fields[0]
    }
    codes = joined.pop("codes")
    packed: torch.Tensor = getattr(ggml_blocks, f"pack_{name.lower()}")(*joined.values(), codes)
    return packed.numpy()


@pytest.mark.parametrize("matrix", ["q_hex", "q_imatrix_hex"])
@pytest.mark.parametrize("name", READERS)
def test_fields_of_llama_cpps_blocks_pack_to_the_same_bytes(name: str, matrix: str) -> None:
    stored = np.frombuffer(bytes.fromhex(VECTORS["types"][name][matrix]), dtype=np.uint8)
    assert np.array_equal(_repacked(name, stored[None]), stored[None])


@pytest.mark.parametrize("name", READERS)
def test_every_bit_of_a_block_has_its_field(name: str) -> None:
    layout = LAYOUTS[GgmlType[name]]
    rng = np.random.default_rng(7)
    rows = rng.integers(0, 256, (5, 3 * layout.block_bytes), dtype=np.uint8)
    assert np.array_equal(_repacked(name, rows), rows)


def test_the_slow_reading_agrees_with_the_gguf_package() -> None:
    expected = np.frombuffer(base64.b64decode(VECTORS["types"]["Q6_K"]["deq_f32_b64"]), dtype=np.float32)
    stored = np.frombuffer(bytes.fromhex(VECTORS["types"]["Q6_K"]["q_hex"]), dtype=np.uint8)
    fields = _q6_k(stored)
    values = np.float32(fields["d"]) * fields["scales"].astype(np.float32).repeat(16)
    assert np.array_equal(values * (fields["codes"].astype(np.float32) - 32), expected)
    assert np.array_equal(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q6_K), expected)
