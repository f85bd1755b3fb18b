"""Frames between the guard and its client: a u32 length (little endian) and a msgpack value."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack

HEADER = struct.Struct("<I")
MAX_REQUEST_BYTES = 80 << 20
"""A tokenizer.json may have 64 MiB; lists of a GGUF vocabulary need less."""
MAX_REPLY_BYTES = 16 << 20
"""The limit on what a job may hand back; a rendered prompt or a whole vocabulary is far below it."""

JOB_CPU_S = 2.0
LOAD_CPU_S = 20.0
DOCUMENT_CPU_S = 30.0


def pack(value: Any) -> bytes:
    """Return the frame of `value`, header included. Lone surrogates pass, so that no text can break the frame."""
    payload: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogatepass")
    return HEADER.pack(len(payload)) + payload


def unpack(payload: bytes) -> Any:
    """Return the value of a frame's payload; ValueError when it is malformed."""
    return msgpack.unpackb(payload, raw=False, strict_map_key=False, unicode_errors="surrogatepass")


def cpu_limit_s(frame_bytes: int, job: Mapping[str, Any]) -> float:
    """Return the processor time that a job may take: more for a vocabulary or a document, and once more for every MiB
    of text, templates apart."""
    if job["job"] == "load":
        return LOAD_CPU_S
    if job["job"] == "document":
        return DOCUMENT_CPU_S
    template = job.get("template", "")
    text_bytes = max(0, frame_bytes - len(template)) if isinstance(template, str) else 0
    return JOB_CPU_S * (1.0 + text_bytes / (1 << 20))
