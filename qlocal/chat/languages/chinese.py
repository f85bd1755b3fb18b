"""中文. Every text by its English one."""

from __future__ import annotations

TEXTS: dict[str, str] = {}
