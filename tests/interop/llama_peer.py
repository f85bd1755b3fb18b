"""Run by an interpreter that has llama-cpp-python: what llama.cpp itself makes of a GGUF file.

    llama_peer.py logits MODEL.gguf TOKENS.npy OUT.npy      TOKENS (C, S) int32 -> OUT (C, S, V) float32
    llama_peer.py complete MODEL.gguf TOKENS.npy OUT.npy N  TOKENS (S,) -> OUT: up to N greedy tokens, with the end's

The cache is F32 and flash attention is off. No import of this project.
"""

from __future__ import annotations

import sys

import llama_cpp
import numpy as np
from numpy.lib.format import open_memmap


def load(model: str, length: int, *, all_logits: bool) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        model,
        n_ctx=length,
        n_batch=length,
        n_ubatch=length,
        logits_all=all_logits,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )


def logits(model: str, tokens: np.ndarray, out_path: str) -> None:
    chunks, length = tokens.shape
    llama = load(model, length, all_logits=True)
    out = open_memmap(out_path, "w+", np.float32, (chunks, length, llama.n_vocab()))
    for row in range(chunks):
        llama.reset()
        llama.eval(tokens[row].tolist())
        out[row] = llama.scores[:length]
    out.flush()


def complete(model: str, tokens: np.ndarray, out_path: str, num_tokens: str) -> None:
    llama = load(model, len(tokens) + int(num_tokens), all_logits=False)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    answer: list[int] = []
    for token in llama.generate(tokens.tolist(), temp=0.0, repeat_penalty=1.0, top_k=1):
        answer.append(token)
        if llama_cpp.llama_vocab_is_eog(vocab, token) or len(answer) == int(num_tokens):
            break
    np.save(out_path, np.array(answer, np.int32))


if __name__ == "__main__":
    action = {"logits": logits, "complete": complete}[sys.argv[1]]
    action(sys.argv[2], np.load(sys.argv[3]), *sys.argv[4:])
