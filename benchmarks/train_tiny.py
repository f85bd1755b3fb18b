"""Train a small Llama or Mixtral for a few minutes: quantizers then meet weights of these families that were learned.

    python -P benchmarks/train_tiny.py llama|mixtral OUT --text FILE [FILE ...] [--minutes 4]

The texts are read as one; a small vocabulary is made from them. Needs an interpreter with transformers, which this
project does not depend on. OUT becomes a BF16 folder as `quantize` takes it. The last line says how many steps there
was time for.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

GEOMETRY = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
VOCABULARY = 4096
BEGIN, END = "<s>", "</s>"
BATCH, LENGTH = 16, 256
PEAK_RATE, WARM_UP = 2e-3, 40


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=("llama", "mixtral"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in arguments.text)
    tokenizer = make_tokenizer(text)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    model = make_model(arguments.family)
    steps, loss = train(model, tokens, arguments.minutes * 60)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    names = {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (arguments.out / "tokenizer_config.json").write_text(json.dumps(names))
    print(f"{steps} steps of {BATCH} x {LENGTH} tokens out of {len(tokens):,}, loss {loss:.3f}")


def make_tokenizer(text: str) -> Tokenizer:
    """Return a byte-level BPE of the text; the two special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BEGIN, END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def make_model(family: str) -> LlamaForCausalLM | MixtralForCausalLM:
    """Return the model with fresh weights: experts of a mixture are smaller, and two of eight are taken."""
    common = {**GEOMETRY, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(intermediate_size=768, tie_word_embeddings=True, **common))
    config = MixtralConfig(
        intermediate_size=512, num_local_experts=8, num_experts_per_tok=2, output_router_logits=True, **common
    )
    return MixtralForCausalLM(config)


def train(model: LlamaForCausalLM | MixtralForCausalLM, tokens: Tensor, seconds: float) -> tuple[int, float]:
    """Train until the time is over; the rate falls with it. Returns the steps and the mean loss of the last fifty."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    start, steps, losses = time.monotonic(), 0, []
    while (passed := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min((steps + 1) / WARM_UP, 1 - 0.95 * passed)
        places = torch.randint(0, len(tokens) - LENGTH, (BATCH,))
        batch = torch.stack([tokens[place : place + LENGTH] for place in places.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        losses = [*losses[-49:], float(loss.detach())]
    return steps, sum(losses) / len(losses)


if __name__ == "__main__":
    main()
