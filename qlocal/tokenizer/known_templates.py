"""Chat templates that are known by the hash of their text: what their makers published, as far as it was at hand.

A template rewrites every conversation, and can do so behind its user's back. A known one is its maker's; an unknown
one is no worse for that, but deserves a look.
"""

from __future__ import annotations

import hashlib

KNOWN = {
    "793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb": "Qwen2 Instruct",
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": "Qwen2.5 Instruct, Qwen2.5-Coder-0.5B",
    "d5495a1e5db0611132a97e46a65dbb64a642a499421228b9c8b93229097fa9a4": "Qwen2.5-Coder-1.5B",
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": "SmolLM2-135M",
    "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7": "Mixtral-8x7B-Instruct v0.1, December 2023",
    "796853172235ab3aaa4810013ddfe2eab481bda3306dad4f700c00d436eed596": "Mistral v1 with a system message",
}
"""SHA-256 of the text in UTF-8, by the model that it belongs to."""


def sha256(template: str) -> str:
    """Return the hash that tells templates apart."""
    return hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()


def known_as(template: str) -> str | None:
    """Return whose template this is, None for one that is not known."""
    return KNOWN.get(sha256(template))
