"""The contract of every checkpoint format: an inventory from headers alone, and tensors read one at a time.

Opening a checkpoint reads headers only and imports no torch; `read` maps the file and does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qlocal.errors import CheckpointError
from qlocal.ggml_types import GgmlType
from qlocal.models.base import Architecture, ModelConfig, TensorSpec

if TYPE_CHECKING:
    from qlocal.weights import Weight


MAX_PROBLEMS = 1000
"""Tensors that are missing or misshapen, after which a checkpoint is refused without a look at the rest."""


def too_many_problems(name: str, config: ModelConfig, problems: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{name}: more than {MAX_PROBLEMS} tensors do not match the {config.model_type} table",
        problems,
        hint="It is incomplete, or its configuration belongs to another model.",
    )


@dataclass(frozen=True)
class StoredTensor:
    """How one tensor of the architecture's table lies on disk.

    shape: the model's (N, K) or (N,). storage: `bf16`, `f16`, `f32`, `awq`, `gptq`, or a GGML type's name
    in lower case (`q4_k`). num_bytes: all parts together (codes, scales, zero points, g_idx), without padding.
    """

    spec: TensorSpec
    storage: str
    num_bytes: int
    ggml_type: GgmlType | None = None
    group_size: int | None = None
    has_g_idx: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape


@dataclass(frozen=True)
class Region:
    """A rectangle of a tensor: a range of its rows (elements of a vector) and of its columns, None for all.

    Columns of GGML types are cut between blocks, rows that a file holds in another order between heads, rows and
    columns of 4-bit codes on multiples of 8.
    """

    rows: range | None = None
    columns: range | None = None


WHOLE = Region()


@dataclass(frozen=True)
class TokenizerData:
    """What is needed to tokenize, as read from the folder or from GGUF metadata; bytes of strangers.

    Exactly one of `tokenizer_json`, `sentencepiece_model` and `gguf_vocabulary` is given.
    added_tokens: id -> (text, is_special), for sentencepiece folders. chat_template: Jinja text or None.
    """

    tokenizer_json: bytes | None = None
    sentencepiece_model: bytes | None = None
    gguf_vocabulary: GgufVocabulary | None = None
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool = False
    added_tokens: Mapping[int, tuple[str, bool]] | None = None


@dataclass(frozen=True)
class GgufVocabulary:
    """The `tokenizer.ggml.*` keys. model: `gpt2` or `llama`; pre: name of the split rule."""

    model: str
    pre: str
    tokens: list[str]
    token_types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    bos_token_id: int | None
    eos_token_id: int | None
    add_space_prefix: bool = True


@dataclass(frozen=True)
class GenerationDefaults:
    """generation_config.json: stop ids of all sources together, and sampling where the makers recommend it."""

    stop_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


class Checkpoint(Protocol):
    """A folder or GGUF file whose tensors have been held against the architecture's table."""

    path: Path
    format: str
    """`bf16` (any unquantized safetensors), `awq`, `gptq` or `gguf`."""
    architecture: Architecture
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    """By canonical name (`TensorSpec.name`), in file order; complete, or opening has failed."""
    files: tuple[Path, ...]
    """All files that hold tensors or metadata, for hashing and for counting bytes."""

    def read(self, name: str, region: Region = WHOLE) -> Weight:
        """Return the tensor `name` (canonical), or a region of it, mapped from disk; nothing is re-encoded.

        No byte outside the region is touched, but for whole pages. Codes that are cut inside a group keep its scale;
        with a g_idx that permutes columns, a region of them has the scales of all groups, and groups of any size.
        """
        ...

    def will_read(self, name: str) -> None:
        """Have the tensor brought from the disk while something else is done, where it is on one."""
        ...

    def tokenizer(self) -> TokenizerData:
        """Return the vocabulary and chat template; TokenizerError when there is none."""
        ...

    def generation_defaults(self) -> GenerationDefaults:
        """Return the sampling defaults and stop ids."""
        ...
