"""Run by the peers' own interpreter: load a quantized folder with transformers and GPTQModel, and say what it saw.

    peer_dump.py FOLDER OUT.npz ID [ID ...]

Writes the weight of every quantized linear as float16 (found by multiplying with the identity), the logits of the
given tokens in bfloat16, and the logits of the same weights in a float32 model. No import of this project.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM


def dequantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return {module name: (N, K) float16}."""
    weights = {}
    for name, module in model.named_modules():
        if not hasattr(module, "qweight"):
            continue
        identity = torch.eye(module.in_features, dtype=torch.float16)
        bias, module.bias = module.bias, None
        weights[name] = module(identity).T.contiguous().to(torch.float16)
        module.bias = bias
    return weights


def float32_twin(folder: Path, model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {name: tensor.float() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    state = {name: tensor for name, tensor in state.items() if name in twin.state_dict()}
    state |= {f"{name}.weight": weight.float() for name, weight in weights.items()}
    missing = twin.load_state_dict(state, strict=False).missing_keys
    assert not [name for name in missing if name != "lm_head.weight"], missing
    return twin


@torch.no_grad()
def main(folder: Path, out: Path, ids: list[int]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.bfloat16).eval()
    # GPTQModel 7.7's AWQ kernel returns float32 where a linear has a bias; the head then refuses the mixed types.
    model.lm_head.register_forward_pre_hook(lambda head, args: (args[0].to(head.weight.dtype),))
    weights = dequantized(model)
    twin = float32_twin(folder, model, weights)
    tokens = torch.tensor([ids])
    arrays = {f"weight:{name}": weight.numpy() for name, weight in weights.items()}
    arrays["logits_bfloat16"] = model(tokens).logits[0].float().numpy()
    arrays["logits_float32"] = twin(tokens).logits[0].numpy()
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(value) for value in sys.argv[3:]])
