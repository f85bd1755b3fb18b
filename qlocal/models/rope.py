"""Rotary frequencies in float64, without torch. Vectors: `tests/golden/rope/`.

Base frequency of pair i is theta^(-2i/d). Sources: YaRN, arXiv 2309.00071; Llama 3.1's rule as in its release.
"""

from __future__ import annotations

import math

from qlocal.models.base import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> list[float]:
    """Return the head_dim / 2 angular frequencies in radians a position, scaling applied."""
    dim, theta = config.head_dim, config.rope_theta
    base = [theta ** (-2.0 * i / dim) for i in range(dim // 2)]
    scaling = config.rope_scaling
    if scaling is None:
        return base
    if scaling.kind == "linear":
        return [f / scaling.factor for f in base]
    if scaling.kind == "factors":
        return [f / divisor for f, divisor in zip(base, scaling.factors, strict=True)]
    if scaling.kind == "llama3":
        return [_llama3_frequency(f, scaling) for f in base]
    assert scaling.kind == "yarn", "config_fields admits no other kind"
    return _yarn_frequencies(base, dim, theta, scaling)


def attention_factor(config: ModelConfig) -> float:
    """Return what cos and sin are multiplied with: 1 unless YaRN, then 0.1 ln(factor) + 1 or as given."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0


def llama3_divisors(config: ModelConfig) -> list[float]:
    """Return what llama3 scaling divides each base frequency by: the content of GGUF's rope_freqs.weight."""
    assert config.rope_scaling is not None and config.rope_scaling.kind == "llama3", "only llama3 has divisors"
    dim, theta = config.head_dim, config.rope_theta
    base = [theta ** (-2.0 * i / dim) for i in range(dim // 2)]
    return [f / _llama3_frequency(f, config.rope_scaling) for f in base]


def _llama3_frequency(frequency: float, scaling: RopeScaling) -> float:
    wavelength = 2.0 * math.pi / frequency
    length, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / scaling.factor
    blend = (length / wavelength - low) / (high - low)
    return (1.0 - blend) * frequency / scaling.factor + blend * frequency


def _yarn_frequencies(base: list[float], dim: int, theta: float, scaling: RopeScaling) -> list[float]:
    def pair_with_turns(turns: float) -> float:
        return (
            dim * math.log(scaling.original_max_position_embeddings / (2.0 * math.pi * turns)) / (2.0 * math.log(theta))
        )

    low = max(math.floor(pair_with_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with_turns(scaling.beta_slow)), dim - 1)
    span = max(high - low, 1e-3)
    ramps = [min(max((i - low) / span, 0.0), 1.0) for i in range(len(base))]
    return [f * (1.0 - g) + f / scaling.factor * g for f, g in zip(base, ramps, strict=True)]
