"""Published GGUF files, and ours, against the real llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.kernels import reference
from qlocal.tokenizer.tokenizer import Tokenizer
from tests.interop import own_engine, peers
from tests.real_models import real_model

pytestmark = pytest.mark.real

PUBLISHED = ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
CHUNKS, LENGTH = 8, 256
QUESTIONS = (
    "Why does the moon look larger near the horizon?",
    "用三句话介绍一下长江。",
    "Write a Python function that returns the second largest number of a list.",
    "Translate into French: The bridge was opened on a rainy Tuesday.",
)
CLOSE_NATS = 0.5
"""Where two greedy answers part, the other's token is at most so much less likely for us than our own."""


def text_tokens(path: Path, shared_data: Path) -> torch.Tensor:
    """Return (C, S) token ids: consecutive windows of an English text."""
    text = (shared_data / "text" / "eval-wiki.txt").read_text(encoding="utf-8")[:30_000]
    with Guard() as guard:
        ids = Tokenizer.load(open_checkpoint(path).tokenizer(), guard).encode(text)
    return torch.tensor(ids[: CHUNKS * LENGTH]).view(CHUNKS, LENGTH)


def prompts(path: Path) -> list[list[int]]:
    """Return the ids of QUESTIONS, rendered by the file's own template."""
    with Guard() as guard:
        tokenizer = Tokenizer.load(open_checkpoint(path).tokenizer(), guard)
        return [tokenizer.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]


@dataclass(frozen=True)
class Twin:
    """A published file, and its weights in float32."""

    name: str
    path: Path
    float32: Path


@pytest.fixture(scope="module", params=PUBLISHED)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    path = real_model(f"{request.param}.gguf")
    float32 = tmp_path_factory.mktemp("twin") / "twin.gguf"
    own_engine.write_float32_twin(path, float32)
    yield Twin(request.param, path, float32)
    float32.unlink()  # 7 GB for the largest


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_of_a_published_file_equals_the_gguf_packages(name: str) -> None:
    path = real_model(f"{name}.gguf")
    checkpoint = open_checkpoint(path)
    peers_tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for stored in checkpoint.tensors.values():
        peer = peers_tensors[stored.spec.gguf_name]
        theirs = torch.from_numpy(
            np.array(gguf.dequantize(peer.data, peer.tensor_type))
        )  # a copy: the map is read-only
        weight = checkpoint.read(stored.spec.name)
        row_map = getattr(weight, "row_map", None)
        expected = theirs if row_map is None else theirs[row_map]
        assert torch.equal(reference.dequantize(weight), expected.float()), stored.spec.name


def test_logits_equal_llama_cpps_on_the_same_weights_in_float32(twin: Twin, tmp_path: Path, shared_data: Path) -> None:
    tokens = text_tokens(twin.path, shared_data)
    theirs = torch.from_numpy(np.array(peers.llama_logits(twin.float32, tokens.numpy(), tmp_path)))
    ours = own_engine.logits(twin.float32, tokens, "float32")
    kl = own_engine.mean_kl(theirs, ours)
    print(f"\n{twin.name}: mean KL to llama.cpp on the float32 twin {kl:.3g}")
    assert kl < 1e-4


def test_greedy_answers_equal_llama_cpps_on_the_same_weights_in_float32(twin: Twin, tmp_path: Path) -> None:
    prompt_ids = prompts(twin.path)
    ours = own_engine.greedy_answers(twin.float32, prompt_ids, peers.ANSWER_TOKENS, "float32")
    theirs = [peers.llama_answer(twin.float32, ids, tmp_path) for ids in prompt_ids]
    assert [answer.token_ids[: len(other)] for answer, other in zip(ours, theirs, strict=True)] == theirs


@pytest.mark.parametrize("name", PUBLISHED)
def test_quantized_files_are_nearer_to_float32_than_llama_cpp(name: str, tmp_path: Path, shared_data: Path) -> None:
    """llama.cpp rounds activations to 8 bits, we to bfloat16; the same blocks in float32 say who is nearer."""
    path = real_model(f"{name}.gguf")
    tokens = text_tokens(path, shared_data)
    exact = own_engine.logits(path, tokens, "float32")
    ours = own_engine.mean_kl(exact, own_engine.logits(path, tokens, "bfloat16"))
    theirs = own_engine.mean_kl(exact, torch.from_numpy(np.array(peers.llama_logits(path, tokens.numpy(), tmp_path))))
    print(f"\n{name}: mean KL to float32 {ours:.3g}, llama.cpp's {theirs:.3g}")
    assert ours <= theirs < 0.05


@pytest.mark.parametrize("name", PUBLISHED)
def test_greedy_answers_of_quantized_files_part_only_where_two_tokens_are_close(name: str, tmp_path: Path) -> None:
    path = real_model(f"{name}.gguf")
    prompt_ids = prompts(path)
    answers = own_engine.greedy_answers(path, prompt_ids, peers.ANSWER_TOKENS, "bfloat16")
    gaps = []
    for ids, ours in zip(prompt_ids, answers, strict=True):
        theirs = peers.llama_answer(path, ids, tmp_path)
        same = common_length(ours.token_ids, theirs)
        gap = 0.0 if same == len(theirs) else ours.logprobs[same].logprob - ours.logprob_of(same, theirs[same])
        gaps.append(gap)
        print(f"\n{name}: {same} of {len(theirs)} greedy tokens equal llama.cpp's, then {gap:.3g} nats apart", end="")
    assert max(gaps) < CLOSE_NATS


def common_length(a: list[int], b: list[int]) -> int:
    """Return how many tokens two answers have in common from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
