"""What is fuzzed: each target makes a hostile input and reads it, which ends in a value or in one of our sentences."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from qlocal.clean import clean_line
from qlocal.errors import QLocalError
from qlocal.formats import gguf_metadata, hf_folder
from qlocal.formats.base import TokenizerData
from qlocal.formats.generation_config import parse_generation_defaults
from qlocal.formats.gguf_reader import GgufHeader, read_gguf
from qlocal.formats.gguf_values import MetaValue, ValueType
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from qlocal.formats.imatrix_file import read_imatrix
from qlocal.formats.quantization_config import parse_quantization_config
from qlocal.formats.safetensors_file import read_header
from qlocal.formats.sentencepiece_model import parse_sentencepiece
from qlocal.guard import gguf_bpe, sentencepiece_proto, tokenizer_json
from qlocal.guard.client import Guard
from qlocal.guard.errors import JobError
from qlocal.models import ARCHITECTURES
from qlocal.models.base import ModelConfig
from qlocal.models.config_fields import parse_config
from qlocal.server.errors import body_of
from qlocal.strict_json import parse_json_object
from tests import tiny
from tests.fuzz import blocks, files, frames
from tests.fuzz.lies import NAMES, VALUES, Liar
from tests.fuzz.schemas import follow_pattern, follow_schema

Read = Callable[[Random], bool]
"""Makes one case and reads it: True when it was read, False when it was refused. Anything else raised is a finding."""
MAX_MESSAGE_CHARS = 2000


@dataclass(frozen=True)
class Target:
    """share: of all cases, so that slow targets do not take all of the time."""

    name: str
    share: float
    read: Read


def refused(error: Exception) -> bool:
    """Hold a refusal against its form: one short line that a terminal can show."""
    # The guard's process cleans what it sends, as it may quote a library.
    message = clean_line(error.message) if isinstance(error, JobError) else getattr(error, "message", "")
    assert message and len(message) <= MAX_MESSAGE_CHARS, f"a message of {len(message)} characters"
    assert message.isprintable(), f"a message that is not printable: {message!r}"
    return False


class Scratch:
    """One file that is written anew for every case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._fd)

    def put(self, content: bytes) -> Path:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, content, 0)
        return self.path


def targets(folder: Path, guard: Guard) -> list[Target]:
    """Return all targets; they write into `folder`, best in memory."""
    return [
        Target("GGUF reader", 0.30, _gguf(Scratch(folder / "x.gguf"))),
        Target("safetensors pre-check", 0.30, _safetensors(Scratch(folder / "x.safetensors"))),
        Target("GGUF keys", 0.06, _gguf_keys(folder)),
        Target("config.json", 0.12, _config),
        Target("JSON", 0.046, _json),
        Target("engine frames", 0.05, _told(frames.read)),
        Target("index and folder", 0.03, _folder(folder / "folder")),
        Target("kept conversations", 0.02, _told(blocks.reader(folder / "blocks", Scratch(folder / "x.kv").put))),
        Target("importance files", 0.02, _imatrix(folder / "imatrix")),
        Target("sentencepiece models", 0.03, _sentencepiece),
        Target("tokenizer.json", 0.012, _tokenizer_json),
        Target("vocabularies of GGUF", 0.004, _gguf_vocabulary),
        Target("chat templates", 0.004, _template(guard)),
        Target("JSON schemas", 0.002, _told(partial(follow_schema, guard))),
        Target("regular expressions", 0.002, _told(partial(follow_pattern, guard))),
    ]


def _gguf(scratch: Scratch) -> Read:
    def read(rng: Random) -> bool:
        content = files.gguf(Liar(rng)).content
        path = scratch.put(content)
        try:
            header = read_gguf(path)
        except QLocalError as error:
            return refused(error)
        end = 0
        for tensor in header.tensors.values():
            assert end <= tensor.offset and tensor.offset + tensor.num_bytes <= len(content), tensor
            end = tensor.offset + tensor.num_bytes
        return True

    return read


def _safetensors(scratch: Scratch) -> Read:
    def read(rng: Random) -> bool:
        content = files.safetensors(Liar(rng)).content
        path = scratch.put(content)
        try:
            tensors = read_header(path)
        except QLocalError as error:
            return refused(error)
        data_start = 8 + int.from_bytes(content[:8], "little")
        assert sum(tensor.num_bytes for tensor in tensors.values()) == len(content) - data_start
        assert all(data_start <= t.offset and t.offset + t.num_bytes <= len(content) for t in tensors.values())
        return True

    return read


def _gguf_keys(folder: Path) -> Read:
    from tests.formats.gguf_files import write_tiny_gguf

    headers = [
        read_gguf(write_tiny_gguf(folder / model_type / "m.gguf", model_type)[0][0])
        for model_type in ARCHITECTURES
        if not (folder / model_type).mkdir()
    ]

    def value(rng: Random) -> MetaValue:
        kind = rng.choice(tuple(ValueType))
        if kind is ValueType.ARRAY:
            element = rng.choice(files.ARRAY_ELEMENTS)
            return MetaValue(kind, [_scalar(rng, element) for _ in range(rng.choice((0, 1, 2, 320)))], element)
        return MetaValue(kind, _scalar(rng, kind))

    def read(rng: Random) -> bool:
        header = rng.choice(headers)
        metadata = dict(header.metadata)
        for _ in range(rng.randrange(1, 4)):
            name = rng.choice(tuple(header.metadata))
            metadata[name] = value(rng)
            if rng.random() < 0.2:
                del metadata[name]
        return _read_gguf_keys(dataclasses.replace(header, metadata=metadata))

    return read


def _read_gguf_keys(header: GgufHeader) -> bool:
    try:
        gguf_metadata.read_config(header)
        gguf_metadata.read_tokenizer(header)
        gguf_metadata.read_generation_defaults(header)
    except QLocalError as error:
        return refused(error)
    return True


def _scalar(rng: Random, kind: ValueType) -> Any:
    if kind is ValueType.STRING:
        return rng.choice((*NAMES[:6], "qwen2", "llama", "gpt2", "yarn", "linear", "none", "<|im_end|>"))
    if kind is ValueType.BOOL:
        return rng.random() < 0.5
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return rng.choice((0.0, -1.0, 1.5, math.nan, math.inf, 1e-30, 1e6))
    return rng.choice((0, 1, 2, 3, 4, 64, 127)) * (-1 if kind.name.startswith("INT") and rng.random() < 0.2 else 1)


_CONFIGS = [tiny.raw_config(model_type) for model_type in ARCHITECTURES]
_QUANTIZATION: dict[str, Any] = {
    "quant_method": "gptq", "bits": 4, "w_bit": 4, "group_size": 32, "q_group_size": 32, "sym": True,
    "zero_point": True, "version": "gemm", "format": "gptq", "checkpoint_format": "gptq", "desc_act": False,
    "lm_head": True, "dynamic": {},
    "pack_dtype": "int32", "meta": {}, "is_marlin_format": False,
}  # fmt: skip
_GENERATION: dict[str, Any] = {
    "eos_token_id": [1, 2],
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "repetition_penalty": 1.0,
}
_FIELDS = (
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "auto_map",
    "trust_remote_code",
    "_attn_implementation_internal",
)


def _config(rng: Random) -> bool:
    raw = dict(rng.choice(_CONFIGS))
    architecture = ARCHITECTURES[raw["model_type"]]
    for _ in range(rng.randrange(1, 4)):
        raw[rng.choice((*raw, *_FIELDS))] = rng.choice(VALUES)
    settings = dict(_QUANTIZATION, quant_method=rng.choice(("awq", "gptq")))
    for name in rng.sample(tuple(settings), rng.randrange(8)):
        del settings[name]
    settings[rng.choice(tuple(_QUANTIZATION))] = rng.choice(VALUES)
    generation = dict(_GENERATION) | {rng.choice(tuple(_GENERATION)): rng.choice(VALUES)}
    results = []
    for parse in (
        lambda: parse_config(raw, architecture, "config.json"),
        lambda: parse_quantization_config(rng.choice((settings, settings, rng.choice(VALUES))), "config.json"),
        lambda: parse_generation_defaults(generation, "generation_config.json", 320, ()),
    ):
        try:
            found = parse()
            results.append(True)
        except QLocalError as error:
            results.append(refused(error))
            continue
        if isinstance(found, ModelConfig):
            assert found.hidden_size > 0 and found.head_dim % 2 == 0 and math.isfinite(found.rope_theta)
    return any(results)


_TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"a"', b'"b"', b'"\\ud800"', b'"\\u0061"', b"NaN", b"1e999", b"-0", b"1.5",
    b"true", b"null", b" ", b'"\xff"', b'"\\x"', b"\x00", "\ufeff".encode(), b'"' + b"9" * 50 + b'"', b"9" * 5000,
)  # fmt: skip


def _json(rng: Random) -> bool:
    text = json.dumps({"a": [1, 2.5, {"b": None}], "c": {"d": "e\\u00e9"}}).encode()
    at = rng.randrange(len(text))
    data = text[:at] + b"".join(rng.choices(_TOKENS, k=rng.randrange(1, 4))) + text[at + rng.randrange(3) :]
    if rng.random() < 0.3:
        depth = rng.choice((10, 60, 62, 64, 900, 2000))
        data = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    try:
        value = parse_json_object(data, "x.json")
    except QLocalError as error:
        return refused(error)
    json.dumps(value, allow_nan=False).encode()
    return True


def _folder(folder: Path) -> Read:
    tiny.write_checkpoint(folder, shards=2)
    names = ["config.json", "generation_config.json", "tokenizer_config.json", hf_folder.INDEX_NAME]
    originals = {name: json.loads((folder / name).read_text()) for name in names}
    scratches = {name: Scratch(folder / name) for name in names}
    shards = sorted(set(originals[hf_folder.INDEX_NAME]["weight_map"].values()))

    def read(rng: Random) -> bool:
        for name in names:
            raw = originals[name]
            if name == hf_folder.INDEX_NAME and rng.random() < 0.6:
                raw = copy.deepcopy(raw)
                tensor = rng.choice(tuple(raw["weight_map"]))
                raw["weight_map"][tensor] = rng.choice((rng.choice(shards), f"../{shards[0]}", *NAMES, *VALUES))
            elif name != hf_folder.INDEX_NAME and rng.random() < 0.3:
                raw = raw | {rng.choice((*raw, "added_tokens_decoder", "add_bos_token")): rng.choice(VALUES)}
            text = json.dumps(raw).encode()
            scratches[name].put(Liar(rng, 0.02).damaged(text))
        try:
            found, _ = hf_folder.read_shards(folder)
            hf_folder.read_config(folder)
            hf_folder.read_tokenizer(folder)
            hf_folder.read_generation_defaults(folder, 320, ())
        except QLocalError as error:
            return refused(error)
        assert all(tensor.file.path.parent == folder for tensor in found.values())
        return True

    return read


def _imatrix(folder: Path) -> Read:
    import torch

    from tests.formats import imatrix_files

    folder.mkdir()
    entries = {"blk.0.attn_q.weight": torch.tensor([0.5, 0.0, 2.0]), "output.weight": torch.ones(4)}
    seeds = [
        imatrix_files.write_legacy(folder / "legacy", entries).read_bytes(),
        imatrix_files.write_gguf(folder / "gguf", entries).read_bytes(),
    ]
    scratch = Scratch(folder / "x.dat")

    def read(rng: Random) -> bool:
        data, liar = rng.choice(seeds), Liar(rng, 1.0)
        for _ in range(rng.randrange(1, 4)):
            data = liar.damaged(data)
        try:
            found = read_imatrix(scratch.put(data))
        except QLocalError as error:
            return refused(error)
        assert all(math.isfinite(value) and value >= 0 for entry in found.entries.values() for value in entry.values)
        return True

    return read


_PIECES = [sentencepiece_proto.Piece("<unk>", 0.0, 2), sentencepiece_proto.Piece("<s>", 0.0, 3)] + [
    sentencepiece_proto.Piece(text, -float(index)) for index, text in enumerate(("\u2581a", "b", "今", "<0x0A>"))
]
_MODEL = sentencepiece_proto.bpe_model(_PIECES, has_dummy_prefix=True).encode()


def _sentencepiece(rng: Random) -> bool:
    data, liar, results = _MODEL, Liar(rng, 1.0), []
    for _ in range(rng.randrange(1, 4)):
        data = liar.damaged(data)
    for parse in (parse_sentencepiece, sentencepiece_proto.parse):
        try:
            parse(data)  # type: ignore[operator]
            results.append(True)
        except (QLocalError, JobError) as error:
            results.append(refused(error))
    return any(results)


_TOKENIZER: dict[str, Any] = {
    "added_tokens": [{"id": 8, "content": "<s>", "special": True, "rstrip": True, "single_word": False}],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "_"}],
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    },
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3, "abc": 4, "<0x0A>": 5, "_": 6, "<unk>": 7},
        "merges": ["a b", ["ab", "c"]],
        "byte_fallback": False,
        "unk_token": None,
        "ignore_merges": False,
    },
}
_RULES: tuple[Any, ...] = (
    {"type": "Lowercase"},
    {"type": "Strip", "left": True, "right": True},
    {"type": "Prepend", "prepend": "_"},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": False},
    {"type": "Digits"},
    {"type": "Punctuation"},
    {"type": "Whitespace"},
    {"type": "Split", "pattern": {"Regex": "(?<=a)(?!b)"}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    {"type": "Sequence", "normalizers": [], "pretokenizers": [{"type": "Digits", "individual_digits": True}]},
)


def _tokenizer_json(rng: Random) -> bool:
    raw = copy.deepcopy(_TOKENIZER)
    for _ in range(rng.randrange(1, 3)):
        _replace_one(rng, raw)
    try:
        vocabulary = tokenizer_json.load(json.dumps(raw).encode())
        vocabulary.encode_plain("abc a\n今", is_first=rng.random() < 0.5)
        vocabulary.describe()
    except JobError as error:
        return refused(error)
    try:
        vocabulary_for_gguf(TokenizerData(tokenizer_json=json.dumps(raw).encode()), _ROWS, ())
    except QLocalError as error:
        refused(error)
    return True


_ROWS = tiny.tiny_config("qwen2")


def _replace_one(rng: Random, raw: Any) -> None:
    """Put something else somewhere into a tree of JSON."""
    place = raw
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.75:
            place = place[key]
            continue
        place[key] = copy.deepcopy(rng.choice((*VALUES, *_RULES)))
        return


def _gguf_vocabulary(rng: Random) -> bool:
    tokens = ["a", "b", "ab", "<s>", "[PAD4]", rng.choice(NAMES), rng.choice(("a", "c", ""))]
    types = [rng.choice((1, 3, 4, 5, 6, 0, -1)) for _ in tokens[: rng.choice((7, 7, 7, 6))]]
    merges = rng.choice((["a b"], [], None, ["a  b"], ["a b c"], ["ab a"], [" "]))
    try:
        gguf_bpe.load(rng.choice(("gpt-2", "qwen2", "llama-bpe", "x\x1b")), tokens, types, merges).encode_plain("ab a")
    except JobError as error:
        return refused(error)
    return True


_PARTS = (
    "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.role | upper }}", "{% if true %}",
    "{% endif %}", "{% set x = namespace(a=1) %}", "{% set x.a = x.a + 1 %}", "{{ x.a }}", "{{ messages | tojson }}",
    "{{ 'a' * 99 }}", "{{ range(9) | list }}", "{% macro f(a) %}", "{% endmacro %}", "{{ f(1) }}", "{{ ''.__class__ }}",
    "{% break %}", "{{ raise_exception('\x1b[2J') }}", "{{ m | attr('x') }}", "{{ '%s' | format(m) }}",
    "{{ loop.index }}", "{{", "}}", "{%", "{# c #}", "{{ 1 // 0 }}", "{{ m.content.split()[0] }}",
    "{{ messages[0:1] }}",
    "{% generation %}", "{% endgeneration %}", "{{ bos_token }}", "<|im_start|>", "\u202e", "\n",
    "{{ strftime_now('%Y') }}", "{{ m is mapping }}", "{{ '' ~ m }}",
)  # fmt: skip


def _template(guard: Guard) -> Read:
    messages = [{"role": "user", "content": "a\x1bb"}, {"role": "assistant", "content": "c"}]

    def read(rng: Random) -> bool:
        template = "".join(rng.choices(_PARTS, k=rng.randrange(1, 12)))
        try:
            guard.render(template, {"messages": messages, "bos_token": "<s>"})
        except QLocalError as error:
            return refused(error)
        return True

    return read


def _told(read_one: Read) -> Read:
    """Hold refusals against their form as a client of the server gets them."""

    def read(rng: Random) -> bool:
        try:
            return read_one(rng)
        except QLocalError as error:
            return refused(type(error)(body_of(error)["error"]["message"]))

    return read
