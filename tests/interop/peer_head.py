"""Run by the peers' own interpreter: load a folder whose head is quantized with GPTQModel, or let it make one.

    peer_head.py load FOLDER OUT.npz ID [ID ...]
    peer_head.py make SOURCE FOLDER BITS

`load` writes the weight of the head as float16 (found by multiplying with the identity) and the logits of the given
tokens; `make` quantizes a BF16 folder to GPTQ with its head in BITS bits. No import of this project.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

TEXTS = ["The quick brown fox jumps over the lazy dog and asks why it was so tired that day. " * 12] * 16


@torch.no_grad()
def load(folder: Path, out: Path, ids: list[int]) -> None:
    backend = BACKEND.TORCH_AWQ if '"awq"' in (folder / "config.json").read_text() else BACKEND.TORCH
    model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=backend).model.eval()
    head = model.lm_head
    assert hasattr(head, "qweight"), f"the head was loaded as a {type(head).__name__}"
    weight = head(torch.eye(head.in_features, dtype=torch.float16)).T.contiguous().to(torch.float16)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))
    logits = model(torch.tensor([ids])).logits[0].float()
    np.savez(out, head=weight.numpy(), logits=logits.numpy())


def make(source: Path, folder: Path, bits: int) -> None:
    head = {"lm_head": {"bits": bits, "group_size": 32, "sym": True, "desc_act": False}}
    config = QuantizeConfig(bits=4, group_size=64, lm_head=True, dynamic=head)
    os.chdir(folder.parent)  # it writes its logs where it stands
    model = GPTQModel.load(str(source), config)
    model.quantize(TEXTS, batch_size=1)
    model.save(str(folder))


if __name__ == "__main__":
    action, *arguments = sys.argv[1:]
    if action == "make":
        make(Path(arguments[0]), Path(arguments[1]), int(arguments[2]))
    else:
        load(Path(arguments[0]), Path(arguments[1]), [int(value) for value in arguments[2:]])
