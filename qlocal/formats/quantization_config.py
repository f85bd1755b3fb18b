"""`quantization_config` of AWQ and GPTQ folders: every spelling in the wild read into one object, and written back.

What cannot be read here is refused by its name. No torch, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qlocal.errors import ConfigError, UnsupportedError
from qlocal.models.base import Role, TensorSpec
from qlocal.models.config_fields import Fields

_SUPPORTED = "Supported: 4-bit AWQ in the gemm layout, 4-bit GPTQ version 1 and 2."
_HEAD_RULE = re.compile(r"(\+:)?\^?lm_head\$?")
"""The patterns by which `dynamic` names the head alone."""


@dataclass(frozen=True)
class QuantizationConfig:
    """How the linears of a folder are stored.

    method: `awq` or `gptq`. group_size: columns a scale, or None for one scale a row (-1 in the file).
    checkpoint_format: `gemm`, `gptq` (zero points minus one) or `gptq_v2`. desc_act: columns were solved in
    another order; with a permuted g_idx it must be true. head: the same for lm_head, or None where it stays in 16 bits.
    """

    method: str
    group_size: int | None
    symmetric: bool
    checkpoint_format: str
    desc_act: bool = False
    head: QuantizationConfig | None = None

    def of(self, spec: TensorSpec) -> QuantizationConfig | None:
        """Return how the codes of a tensor are stored, or None for one that stays in 16 bits."""
        if spec.role is Role.HEAD:
            return self.head
        return self if spec.is_quantized else None

    def groups(self, columns: int) -> int:
        """Return the size of a group in a linear with `columns` inputs."""
        return columns if self.group_size is None else self.group_size


def parse_quantization_config(raw: Any, where: str) -> QuantizationConfig | None:
    """Return the settings, or None for a folder without quantization; UnsupportedError for other layouts."""
    if raw is None:
        return None
    where = f"{where}: quantization_config"
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is no object")
    method = str(raw.get("quant_method", raw.get("method", "gptq" if "desc_act" in raw else ""))).lower()
    if method not in ("awq", "gptq"):
        raise UnsupportedError(f"{where}: quant_method {method[:40]!r} is not supported", hint=_SUPPORTED)
    fields = Fields(raw, where)
    bits = fields.integer("bits" if raw.get("bits") is not None else "w_bit", 1, 16, default=4)
    if bits != 4:
        raise UnsupportedError(f"{where}: bits is {bits}, expected 4", hint=_SUPPORTED)
    if raw.get("pack_dtype") not in (None, "int32"):
        raise UnsupportedError(f"{where}: pack_dtype is {str(raw['pack_dtype'])[:40]!r}, expected int32")
    settings = _parse_awq(raw, fields, where) if method == "awq" else _parse_gptq(raw, fields, where)
    return replace(settings, head=_parse_head(raw, fields, settings, where))


def _parse_awq(raw: Mapping[str, Any], fields: Fields, where: str) -> QuantizationConfig:
    for name in ("version", "format", "checkpoint_format"):
        if str(raw.get(name) or "gemm").lower() != "gemm":
            raise UnsupportedError(f"{where}: {name} {str(raw[name])[:40]!r} is not supported", hint=_SUPPORTED)
    has_zero_points = fields.flag("zero_point", default=not fields.flag("sym", default=False))
    size = _group_size(fields, "group_size" if raw.get("group_size") is not None else "q_group_size")
    return QuantizationConfig("awq", size, not has_zero_points, "gemm")


def _parse_gptq(raw: Mapping[str, Any], fields: Fields, where: str) -> QuantizationConfig:
    label = "gptq"
    for name in ("format", "checkpoint_format"):
        label = str(raw.get(name) or label).lower()
    if label not in ("gptq", "gptq_v2") or raw.get("is_marlin_format") is True:
        shown = label if label not in ("gptq", "gptq_v2") else "marlin"
        raise UnsupportedError(f"{where}: checkpoint_format {shown[:40]!r} is not supported", hint=_SUPPORTED)
    return QuantizationConfig(
        "gptq",
        _group_size(fields, "group_size"),
        fields.flag("sym", default=True),
        label,
        fields.flag("desc_act", default=False),
    )


def _parse_head(
    raw: Mapping[str, Any], fields: Fields, settings: QuantizationConfig, where: str
) -> QuantizationConfig | None:
    """Return how lm_head is stored where `lm_head` says in codes: as the rest, unless `dynamic` has a rule for it."""
    rules = raw.get("dynamic") or {}
    if not isinstance(rules, Mapping) or any(_HEAD_RULE.fullmatch(str(pattern)) is None for pattern in rules):
        raise UnsupportedError(f"{where}: dynamic (settings by module) is not supported")
    if not fields.flag("lm_head", default=False):
        return None
    rule: Any = next(iter(rules.values()), {})
    if not isinstance(rule, Mapping):
        raise ConfigError(f"{where}: dynamic has no object for lm_head")
    own = Fields(rule, f"{where}: dynamic: lm_head")
    bits = own.integer("bits", 1, 16, default=4)
    if bits != 4:
        raise UnsupportedError(f"{where}: lm_head has {bits} bits, expected 4", hint=_SUPPORTED)
    return replace(
        settings,
        group_size=_group_size(own, "group_size", default=settings.group_size or -1),
        symmetric=own.flag("sym", default=settings.symmetric),
        desc_act=own.flag("desc_act", default=settings.desc_act),
    )


def _group_size(fields: Fields, name: str, default: int = 128) -> int | None:
    size = fields.integer(name, -1, 1 << 20, default=default)
    if size == 0:
        raise ConfigError(f"{name} is 0, expected -1 or a number of columns")
    return None if size == -1 else size


def awq_config_json(
    group_size: int, not_converted: list[str] | None, *, quantizes_head: bool = False
) -> dict[str, Any]:
    """Return AWQ's dictionary. Peers' fast kernels exist for `zero_point: true` alone, so it is always that.

    AutoAWQ knows no `lm_head`; GPTQModel and vLLM read it here as in GPTQ's, so it is written where it is true.
    """
    return {
        "quant_method": "awq",
        "zero_point": True,
        "group_size": group_size,
        "bits": 4,
        "version": "gemm",
        "modules_to_not_convert": not_converted,
        **({"lm_head": True} if quantizes_head else {}),
    }


def gptq_config_json(
    config: QuantizationConfig, quantizer: str, *, damp_percent: float, act_group_aware: bool
) -> dict[str, Any]:
    """Return GPTQ's dictionary; `quantizer` is `name:version`."""
    assert config.method == "gptq" and (config.symmetric or config.checkpoint_format == "gptq_v2"), (
        "asymmetric zero points are written as version 2 alone: in version 1 a zero point of 0 borrows"
    )
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": -1 if config.group_size is None else config.group_size,
        "desc_act": config.desc_act,
        "sym": config.symmetric,
        "lm_head": config.head is not None,
        "checkpoint_format": config.checkpoint_format,
        "pack_dtype": "int32",
        "true_sequential": True,
        "damp_percent": damp_percent,
        "meta": {"quantizer": [quantizer], "act_group_aware": act_group_aware},
    }
