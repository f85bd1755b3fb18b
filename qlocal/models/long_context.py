"""How far a model reaches: its own context, and by YaRN beyond it, stretched no more than the asked context needs.

A larger factor costs accuracy on every text, short ones too, so it is chosen once, when the context is known.
"""

from __future__ import annotations

from dataclasses import replace

from qlocal.models.base import Architecture, ModelConfig, RopeScaling


def context_limit(config: ModelConfig) -> int:
    """Return the longest context that the configuration is for; its YaRN reaches beyond `max_position_embeddings`."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "yarn":
        return max(config.max_position_embeddings, int(scaling.original_max_position_embeddings * scaling.factor))
    return config.max_position_embeddings


def stretched_limit(config: ModelConfig, architecture: Architecture) -> int:
    """Return the longest context with YaRN, where the makers document it for models that do not state it."""
    native, factor = architecture.yarn
    if config.rope_scaling is None and config.max_position_embeddings == native:
        return int(native * factor)
    return context_limit(config)


def yarn_factor(config: ModelConfig, architecture: Architecture, context: int) -> float | None:
    """Return the least factor that reaches `context`, or None where the configuration stays as it is."""
    scaling = config.rope_scaling
    if scaling is None:
        has_more = config.max_position_embeddings < context <= stretched_limit(config, architecture)
        return context / config.max_position_embeddings if has_more else None
    # A file that states the attention factor was made for its factor.
    if scaling.kind != "yarn" or scaling.attention_factor is not None:
        return None
    return min(scaling.factor, max(1.0, context / scaling.original_max_position_embeddings))


def stretched(config: ModelConfig, factor: float | None) -> ModelConfig:
    """Return the configuration with YaRN by `factor`, as `yarn_factor` gives it."""
    if factor is None:
        return config
    scaling = config.rope_scaling or RopeScaling(
        "yarn", original_max_position_embeddings=config.max_position_embeddings
    )
    return replace(config, rope_scaling=replace(scaling, factor=factor))
