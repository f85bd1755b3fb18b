"""The files of a Hugging Face folder: shards by index, config, tokenizer, chat template, generation config.

Everything is read by allow-list; no code, no pickle. Tensors are not held against an architecture here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlocal.errors import ConfigError, FormatError, TokenizerError
from qlocal.formats.base import GenerationDefaults, TokenizerData
from qlocal.formats.generation_config import parse_generation_defaults
from qlocal.formats.json_file import read_json_object
from qlocal.formats.mapped_file import read_small_file
from qlocal.formats.safetensors_file import TensorInfo, read_header
from qlocal.strict_json import parse_json_object

INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
MAX_TOKENIZER_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20
MAX_SHARDS = 4096
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,250}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def read_shards(folder: Path) -> tuple[dict[str, TensorInfo], tuple[Path, ...]]:
    """Return all tensors of the folder by name and the files they lie in; headers alone are read."""
    names = _shard_names(folder)
    tensors: dict[str, TensorInfo] = {}
    origin: dict[str, str] = {}
    for name in names:
        for tensor, info in read_header(folder / name).items():
            if tensor in tensors:
                raise FormatError(f"{name}: tensor {tensor!r} lies in {origin[tensor]} too")
            tensors[tensor], origin[tensor] = info, name
    if (folder / INDEX_NAME).exists():
        _check_index(folder, origin)
    return tensors, tuple(folder / name for name in names)


def _shard_names(folder: Path) -> list[str]:
    """Return the file names of the shards in order: by the index, else the one safetensors file."""
    if (folder / INDEX_NAME).exists():
        return sorted(set(_weight_map(folder).values()))
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    # Old GPTQ files carry their settings in the name: gptq_model-4bit-128g.safetensors.
    single = sorted(p.name for p in folder.glob("*.safetensors") if _SHARD_NAME.fullmatch(p.name))
    if len(single) == 1:
        return single
    if single:
        raise FormatError(
            f"{folder.name}: {len(single)} safetensors files but no {INDEX_NAME}", hint="Fetch the folder again."
        )
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise FormatError(
            f"{folder.name}: holds {pickles[0]}, a pickle, which may run code when it is read",
            hint="Take the safetensors version of this model, or convert it with its maker's tools.",
        )
    raise FormatError(f"{folder.name}: holds no safetensors file")


def _weight_map(folder: Path) -> dict[str, str]:
    index = read_json_object(folder / INDEX_NAME, MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{INDEX_NAME}: weight_map is missing or empty")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or ".." in name:
            raise FormatError(
                f"{INDEX_NAME}: weight_map puts {tensor[:120]!r} into {str(name)[:120]!r}, "
                "expected the plain name of a .safetensors file in the same folder"
            )
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise FormatError(f"{INDEX_NAME}: names {len(set(weight_map.values()))} files, at most {MAX_SHARDS}")
    return weight_map


def _check_index(folder: Path, origin: Mapping[str, str]) -> None:
    """Hold the index against the shards: each tensor lies where the index says."""
    for tensor, name in _weight_map(folder).items():
        if origin.get(tensor) != name:
            found = f"it lies in {origin[tensor]}" if tensor in origin else "it is not there"
            raise FormatError(f"{INDEX_NAME}: puts {tensor[:120]!r} into {name}, but {found}")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the fields of config.json, with `quantize_config.json` of older GPTQ files as quantization_config."""
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{folder.name}: holds no config.json", hint="A checkpoint is a Hugging Face folder or a GGUF file."
        )
    raw = read_json_object(path)
    beside = folder / "quantize_config.json"
    if raw.get("quantization_config") is None and beside.exists():
        raw["quantization_config"] = read_json_object(beside)
    return raw


def read_generation_defaults(folder: Path, vocab_size: int, stop_ids: tuple[int, ...]) -> GenerationDefaults:
    """Return generation_config.json's sampling values; its stop ids come first, then `stop_ids` (config.json's)."""
    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationDefaults(stop_ids=stop_ids)
    return parse_generation_defaults(read_json_object(path), path.name, vocab_size, stop_ids)


def read_tokenizer(folder: Path) -> TokenizerData:
    """Return the vocabulary, with template and special tokens from tokenizer_config.json.

    tokenizer.json is taken, else tokenizer.model; where the former is only a conversion of the latter (byte
    fallback), the sentencepiece model itself.
    """
    config_path = folder / "tokenizer_config.json"
    config = read_json_object(config_path) if config_path.exists() else {}
    tokenizer_json = _optional(folder / "tokenizer.json")
    sentencepiece = _optional(folder / "tokenizer.model")
    if tokenizer_json is not None and sentencepiece is not None:
        if _is_conversion(tokenizer_json):
            tokenizer_json = None
        else:
            sentencepiece = None
    if tokenizer_json is None and sentencepiece is None:
        raise TokenizerError(
            f"{folder.name}: holds neither tokenizer.json nor tokenizer.model",
            hint="Copy the tokenizer files of the model into the folder.",
        )
    bos = _token_text(config, "bos_token")
    return TokenizerData(
        tokenizer_json=tokenizer_json,
        sentencepiece_model=sentencepiece,
        chat_template=_chat_template(folder, config),
        bos_token=bos,
        eos_token=_token_text(config, "eos_token"),
        add_bos=_adds_bos(config, tokenizer_json, bos),
        added_tokens=_added_tokens(config) if sentencepiece is not None else None,
    )


def _is_conversion(tokenizer_json: bytes) -> bool:
    """Whether a tokenizer.json was made from a sentencepiece model: its BPE falls back to bytes."""
    model = parse_json_object(tokenizer_json, "tokenizer.json").get("model")
    return isinstance(model, Mapping) and model.get("byte_fallback") is True


def _optional(path: Path) -> bytes | None:
    return read_small_file(path, MAX_TOKENIZER_BYTES) if path.exists() else None


def _token_text(config: Mapping[str, Any], name: str) -> str | None:
    """Return a special token's text, written as a string or as an object with `content`."""
    value = config.get(name)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"tokenizer_config.json: {name} is no text")
    return value


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return chat_template.jinja, else the field: a text, or a list of named ones of which `default` is taken."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_small_file(path, MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path.name}: is not UTF-8 at byte {error.start}") from error
    value = config.get("chat_template")
    if isinstance(value, list):
        named = [t.get("template") for t in value if isinstance(t, Mapping) and t.get("name") == "default"]
        value = named[0] if named else None
    if value is not None and not isinstance(value, str):
        raise ConfigError("tokenizer_config.json: chat_template is neither a text nor a list with 'default'")
    if value is not None and len(value) > MAX_TEMPLATE_BYTES:
        raise ConfigError(f"tokenizer_config.json: chat_template has more than {MAX_TEMPLATE_BYTES} characters")
    return value


def _adds_bos(config: Mapping[str, Any], tokenizer_json: bytes | None, bos: str | None) -> bool:
    """Whether a bos stands before a plain text: as configured, else as the post-processor of tokenizer.json does."""
    value = config.get("add_bos_token")
    if isinstance(value, bool):
        return value
    if tokenizer_json is None:
        return True  # sentencepiece models of this family begin with <s>
    processor = parse_json_object(tokenizer_json, "tokenizer.json").get("post_processor")
    return bos is not None and _template_begins_with(processor, bos)


def _template_begins_with(processor: Any, bos: str) -> bool:
    """Whether a post-processor (or one of a sequence) puts `bos` first."""
    if not isinstance(processor, Mapping):
        return False
    steps = processor.get("processors") if processor.get("type") == "Sequence" else [processor]
    for step in steps if isinstance(steps, list) else []:
        single = step.get("single") if isinstance(step, Mapping) else None
        first = single[0] if isinstance(single, list) and single else None
        special = first.get("SpecialToken") if isinstance(first, Mapping) else None
        if isinstance(special, Mapping) and special.get("id") == bos:
            return True
    return False


def _added_tokens(config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Return `added_tokens_decoder` as id -> (text, is special)."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping) or len(decoder) > 65_536:
        raise ConfigError("tokenizer_config.json: added_tokens_decoder is not an object of at most 65536 tokens")
    tokens = {}
    for key, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if not (key.isascii() and key.isdigit() and len(key) < 8) or not isinstance(content, str):
            raise ConfigError(f"tokenizer_config.json: added_tokens_decoder holds {key[:40]!r} without a text")
        tokens[int(key)] = (content, entry.get("special") is True)
    return tokens
