"""Run by the peers' own interpreter: the float32 logits of transformers for an unquantized folder.

peer_logits.py FOLDER TOKENS.npy OUT.npy
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main(folder: str, tokens: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    np.save(out, model(torch.from_numpy(np.load(tokens))[None]).logits[0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
