"""Experts behind a router: every token goes through the few that score best, weighted by a softmax over all."""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.layers.ffn import Ffn, Observe
from qlocal.layers.linear import Placement, QuantLinear
from qlocal.models.base import ModelConfig, Role


class MoeFfn:
    """Mixtral's block: softmax over all router logits, the top k renormalized to one."""

    def __init__(self, config: ModelConfig, placement: Placement, experts: Placement | None = None) -> None:
        """experts: where these compute when it is not where the router does."""
        # The choice of experts is discrete: the router computes in float32, as its weight is never quantized.
        router_placement = Placement(placement.device, "float32", placement.kernels)
        self.router = QuantLinear(config.hidden_size, (config.num_experts,), router_placement)
        experts = experts or placement
        self._expert_device = experts.device
        self.experts = [Ffn(config, experts, expert=e) for e in range(config.num_experts)]
        self._num_chosen = config.num_experts_per_tok

    def __call__(self, x: Tensor, observe: Observe | None = None) -> Tensor:
        """Compute the routed experts alone. x: (T, D) f32, normalized. Returns (T, D) f32."""
        if observe is not None:
            observe(Role.ROUTER, None, x, None)
        (logits,) = self.router(x)  # (T, E)
        weights, chosen = logits.softmax(-1).topk(self._num_chosen)  # (T, k)
        weights = weights / weights.sum(-1, keepdim=True)
        home, device = x.device, self._expert_device
        if home != device:
            x, weights, chosen = x.to(device), weights.to(device), chosen.to(device)
        out = torch.zeros_like(x)
        for expert in sorted(set(chosen.flatten().tolist())):
            tokens, slots = torch.nonzero(chosen == expert, as_tuple=True)
            y = self.experts[expert](x[tokens], observe, tokens)
            out.index_add_(0, tokens, y * weights[tokens, slots][:, None])
        return out if home == device else out.to(home)
