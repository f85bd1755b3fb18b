"""The fast path, weights in fixed point and words, bytes or tiles, against float64 and against the exact path.

On published GGUF files from the folder that QLOCAL_REAL_MODELS names.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlocal.engine.loading import load_engine
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.kernels import reference
from qlocal.layers.loader import load_model
from qlocal.metrics import forward_logits
from qlocal.plan import make_plan
from qlocal.protocol import Load, Sampling
from qlocal.tokenizer.tokenizer import Tokenizer
from tests.engine.running import Answer, request, run
from tests.naive_model import naive_logits
from tests.real_models import real_model

pytestmark = [pytest.mark.real, pytest.mark.slow]

FILES = ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
TOP = 20
ANSWER_TOKENS = 200
FLOAT64_TOKENS = 12  # of an answer: a token of the larger model reads 12 GB
LARGEST_ERROR = 0.1
"""Of a log probability among the best, in nats: prompts are rounded to bfloat16 on AMX, to bytes with VNNI alone."""
LARGEST_KL = 5e-4
"""In the mean, in nats; llama.cpp's own 8-bit activations cost 1.3e-3 and 2.5e-2 on these files."""
TIE = 0.2
"""Nats between the best two, below which roundings of LARGEST_ERROR may exchange them."""
QUESTIONS = [
    "Why does the moon look larger near the horizon?",
    "Write a Python function that returns the second largest number of a list.",
    "用三句话介绍一下长江。",
    "Translate into French: The bridge was opened on a rainy Tuesday.",
    "What is the difference between a process and a thread?",
    "Explain how a hash table resolves collisions.",
    "Write a haiku about winter.",
    "请解释什么是递归，并给出一个例子。",
    "Give me a regular expression for ISO dates.",
    "How do vaccines work?",
    "Write a SQL query that counts orders per customer.",
    "Summarize the plot of Hamlet in four sentences.",
    "Why is the sky blue?",
    "Write a C function that reverses a string in place.",
    "List five rivers in Africa.",
    "What does the Linux command `du -sh` do?",
    "Write a bash loop that renames all .jpeg files to .jpg.",
    "写一个快速排序的 Python 实现。",
    "What is the capital of Australia, and why is it not Sydney?",
    "Explain the Pythagorean theorem to a child.",
]


@pytest.fixture(params=FILES)
def path(request: pytest.FixtureRequest) -> Path:
    return real_model(f"{request.param}.gguf")


def prompts(path: Path, questions: list[str]) -> list[list[int]]:
    with Guard() as guard:
        tokenizer = Tokenizer.load(open_checkpoint(path).tokenizer(), guard)
        return [tokenizer.encode_chat([{"role": "user", "content": question}]) for question in questions]


def answers(path: Path, prompt_ids: list[list[int]], num_tokens: int, dtype: str) -> list[Answer]:
    """Return greedy answers with what was thought of every token, the prompt's included."""
    engine = load_engine(Load(str(path), ["cpu"], max_context=512, slots=4, dtype=dtype), lambda _: None)
    sampling = Sampling(temperature=0.0, top_logprobs=TOP)
    made = [
        request(str(i), ids, num_tokens, sampling, num_tokens=engine.vocab_size) for i, ids in enumerate(prompt_ids)
    ]
    found = run(engine, *made)
    return [found[one.request_id] for one in made]


def float64_logprobs(path: Path, input_ids: list[int], num_last: int) -> Tensor:
    """Return (num_last, V) f64 log probabilities of what follows each of the last ids, by `naive_model.py`."""
    checkpoint = open_checkpoint(path)
    tensors = {name: reference.dequantize(checkpoint.read(name)) for name in checkpoint.tensors}
    return naive_logits(tensors, checkpoint.config, input_ids)[-num_last:].log_softmax(-1)


def test_log_probabilities_are_those_of_float64(path: Path) -> None:
    [ids] = prompts(path, QUESTIONS[:1])
    [answer] = answers(path, [ids], FLOAT64_TOKENS, "bfloat16")
    expected = float64_logprobs(path, ids + answer.token_ids[:-1], FLOAT64_TOKENS)
    errors = [
        float((torch.tensor(scored.top_logprobs, dtype=torch.float64) - row[scored.top_ids]).abs().max())
        for scored, row in zip(answer.logprobs, expected, strict=True)
    ]
    print(f"{path.name}: the {TOP} best of {len(errors)} tokens are at most {max(errors):.4f} nats wrong")
    assert max(errors) <= LARGEST_ERROR


def test_rounding_a_prompt_costs_less_than_the_bound(path: Path) -> None:
    """Mean KL to the exact path, over every position of the questions."""
    ids = [token for prompt in prompts(path, QUESTIONS) for token in prompt]
    checkpoint, log_probabilities = open_checkpoint(path), {}
    for dtype in ("float32", "bfloat16"):
        with torch.inference_mode():
            decoder = load_model(checkpoint, make_plan(checkpoint, ["cpu"], len(ids), slots=1, dtype=dtype))
            log_probabilities[dtype] = forward_logits(decoder, ids).double().log_softmax(-1)
    exact, fast = log_probabilities["float32"], log_probabilities["bfloat16"]
    distance = float((exact.exp() * (exact - fast)).sum(-1).mean())
    print(f"{path.name}: mean KL {distance:.2e} over {len(ids)} tokens")
    assert distance < LARGEST_KL


def test_greedy_answers_part_only_at_ties(path: Path) -> None:
    prompt_ids = prompts(path, QUESTIONS)
    fast = answers(path, prompt_ids, ANSWER_TOKENS, "bfloat16")
    exact = answers(path, prompt_ids, ANSWER_TOKENS, "float32")
    parted = 0
    for ours, expected in zip(fast, exact, strict=True):
        pairs = zip(ours.token_ids, expected.token_ids, strict=False)
        step = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if step is None:
            assert len(ours.token_ids) == len(expected.token_ids)
            continue
        parted += 1
        best, second = expected.logprobs[step].top_logprobs[:2]
        assert best - second <= TIE, f"{ours.token_ids[:step]}"
    print(f"{path.name}: {len(QUESTIONS) - parted} of {len(QUESTIONS)} answers equal, {parted} part at a tie")
