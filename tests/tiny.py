"""Tiny checkpoints of every architecture, written to a folder in milliseconds, with a tiny tokenizer.

Weights are seeded and small; they mean nothing, but every shape rule of the real models holds (GQA, biases,
tied and untied heads, experts).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from qlocal.models import ARCHITECTURES
from qlocal.models.base import ModelConfig, Role
from qlocal.models.config_fields import parse_config

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = (
    "The quick brown fox jumps over the lazy dog. 1234567890 times, said the dog; why not?\n"
    "def add(a, b):\n    return a + b\n",
    "Ein Käfer läuft über die Straße. 今天天气很好。 こんにちは世界 😀 مرحبا",
)

BASE: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
EXTRA: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 70},
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}
CLASSES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM"}


def tiny_tokenizer() -> Tokenizer:
    """Return a byte-level BPE of about 300 tokens with ChatML's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def raw_config(model_type: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a config.json; `overrides` replace fields (None removes one)."""
    ids = {t: tiny_tokenizer().token_to_id(t) for t in SPECIAL_TOKENS}
    values = {
        **BASE,
        **EXTRA[model_type],
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": 320,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        **(overrides or {}),
    }
    return {k: v for k, v in values.items() if v is not None or k == "sliding_window"}


def tiny_config(model_type: str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    return parse_config(raw_config(model_type, overrides), ARCHITECTURES[model_type], "config.json")


def tiny_tensors(model_type: str, config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return bf16 tensors by canonical name. Norms are near 1, biases large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for spec in ARCHITECTURES[model_type].tensors(config):
        noise = torch.randn(spec.shape, generator=generator)
        if len(spec.shape) == 1 and not spec.is_bias:
            values = 1.0 + 0.1 * noise
        elif spec.is_bias:
            values = 3.0 * noise if spec.role is Role.K else 0.5 * noise
        else:
            values = noise / spec.shape[-1] ** 0.5
        tensors[spec.name] = values.to(torch.bfloat16)
    return tensors


def write_checkpoint(
    folder: Path, model_type: str = "qwen2", overrides: Mapping[str, Any] | None = None, seed: int = 0, shards: int = 1
) -> Path:
    """Write a complete BF16 Hugging Face folder: config, tokenizer, template, generation config, safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = raw_config(model_type, overrides)
    (folder / "config.json").write_text(json.dumps(raw, indent=1))
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>", "bos_token": None, "add_bos_token": False}
        )
    )
    stop_ids = [raw["eos_token_id"], raw["bos_token_id"]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop_ids, "temperature": 0.7}))
    config = parse_config(raw, ARCHITECTURES[model_type], "config.json")
    _write_shards(folder, tiny_tensors(model_type, config, seed), shards)
    return folder


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[k::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
