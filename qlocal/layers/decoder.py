"""The decoder layer, and the model made of them. The one forward that quantizer and engine share.

Residual stream, norms, rotary embedding and softmax in float32; only matmul inputs have the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from qlocal.layers.attention import Attend
from qlocal.layers.embedding import Embedding
from qlocal.layers.ffn import Ffn, Observe
from qlocal.layers.linear import Placement, QuantLinear, vector
from qlocal.layers.moe import MoeFfn
from qlocal.layers.norm import rms_norm
from qlocal.layers.rotary import Rotary, Rotation
from qlocal.models.base import ModelConfig, Role
from qlocal.parallel.host_exchange import HostExchange
from qlocal.schema import HeldHead
from qlocal.weights import DenseWeight, Weight

StartAddingUp = Callable[[Tensor], Callable[[], Tensor]]
"""From one rank's part of a sum, (T, D) f32, to what waits for the sum over all ranks, (T, D) f32."""


class DecoderLayer:
    """Attention and FFN with their norms and residuals. Built without memory; `loader` or `replace` fill it.

    config: of what is computed here, which may be one rank's heads and FFN channels; then `start_adding_up` adds the
    ranks' outputs of `o` and of the FFN, and `exchange` does so on cards. experts: where those of a mixture compute,
    when that is elsewhere.
    """

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        experts: Placement | None = None,
        start_adding_up: StartAddingUp | None = None,
        exchange: HostExchange | None = None,
    ) -> None:
        self.config = config
        self.device = placement.device
        self.start_adding_up = start_adding_up
        self.exchange = exchange
        self.input_norm = torch.empty(config.hidden_size, device="meta")
        self.post_attention_norm = torch.empty(config.hidden_size, device="meta")
        of_qkv = replace(placement, keeps_words=True)
        self.qkv = QuantLinear(config.hidden_size, (config.q_size, config.kv_size, config.kv_size), of_qkv)
        self.o = QuantLinear(config.q_size, (config.hidden_size,), placement)
        self.ffn: Ffn | MoeFfn = MoeFfn(config, placement, experts) if config.num_experts else Ffn(config, placement)

    def forward(self, hidden_states: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Return the residual stream after this layer. hidden_states: (T, D) f32."""
        return self.ffn_block(self.attention_block(hidden_states, rotation, attend))

    def attention_block(
        self, hidden_states: Tensor, rotation: Rotation, attend: Attend, observe: Observe | None = None
    ) -> Tensor:
        """Add attention to the residual stream. hidden_states: (T, D) f32; returns the same."""
        return self.add_attended(hidden_states, self.attended(hidden_states, rotation, attend, observe))

    def attended(
        self, hidden_states: Tensor, rotation: Rotation, attend: Attend, observe: Observe | None = None
    ) -> Tensor:
        """Return the input of `o`, (T, H * Dh) f32, for the residual stream (T, D) f32."""
        config, tokens = self.config, hidden_states.shape[0]
        heads = [config.num_attention_heads, config.num_key_value_heads]
        x = rms_norm(hidden_states, self.input_norm, config.rms_norm_eps)
        if observe is not None:
            observe(Role.Q, None, x, None)
        q, k, v = self.qkv(x)
        rotated = rotation.apply(torch.cat((q, k), dim=1).view(tokens, -1, config.head_dim))
        q, k = rotated.split_with_sizes(heads, dim=1)  # (T, H, Dh), (T, Hk, Dh)
        attended = attend(q, k, v.view(k.shape)).reshape(tokens, config.q_size)
        if observe is not None:
            observe(Role.O, None, attended, None)
        return attended

    def add_attended(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """Add what `o` makes of its input to the residual stream. Returns (T, D) f32."""
        (out,) = self.o(attended)
        return hidden_states + self._added_up(out)

    def ffn_block(self, hidden_states: Tensor, observe: Observe | None = None) -> Tensor:
        """Add the feed-forward block to the residual stream. hidden_states: (T, D) f32; returns the same."""
        x = rms_norm(hidden_states, self.post_attention_norm, self.config.rms_norm_eps)
        out = self.ffn(x, observe)
        return hidden_states + self._added_up(out)

    def _added_up(self, out: Tensor) -> Tensor:
        return out if self.start_adding_up is None else self.start_adding_up(out)()

    def replace(self, role: Role, expert: int | None, weight: Weight, bias: DenseWeight | None = None) -> None:
        """Set one norm or one linear's weight and bias (no bias given: none from now on)."""
        if role is Role.INPUT_NORM:
            self.input_norm = vector(weight, self.device)
        elif role is Role.POST_ATTENTION_NORM:
            self.post_attention_norm = vector(weight, self.device)
        else:
            linear, index = self.linear(role, expert)
            linear.set_part(index, weight, bias)

    def linear(self, role: Role, expert: int | None) -> tuple[QuantLinear, int]:
        """Return the linear that computes `role`, and which of its parts that is."""
        attention = {Role.Q: (self.qkv, 0), Role.K: (self.qkv, 1), Role.V: (self.qkv, 2), Role.O: (self.o, 0)}
        if role in attention:
            return attention[role]
        ffn = self.ffn
        if isinstance(ffn, MoeFfn):
            if role is Role.ROUTER:
                return ffn.router, 0
            assert expert is not None, f"{role.value} of a mixture belongs to an expert"
            ffn = ffn.experts[expert]
        return {Role.GATE: (ffn.gate_up, 0), Role.UP: (ffn.gate_up, 1), Role.DOWN: (ffn.down, 0)}[role]


class Decoder:
    """Embedding, layers on their devices, final norm and head. held_head: what was done to the head at load.

    Of a tensor split, one rank's part: config is that part's, and join_logits makes the logits of a rank's rows of the
    head into those of all, on rank 0.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Embedding,
        layers: list[DecoderLayer],
        norm: Tensor,
        head: QuantLinear,
        held_head: HeldHead | None = None,
        join_logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.config = config
        self._join_logits = join_logits
        self.layers = layers
        self.held_head = held_head
        self.embedding = embedding
        self.rotary = Rotary(config)
        self.final_norm = norm
        self.head = head

    def forward(self, input_ids: Tensor, positions: Tensor, attend_of_layer: Callable[[int], Attend]) -> Tensor:
        """Run all layers. input_ids and positions: (T,) int64. Returns the residual stream (T, D) f32, unnormalized."""
        return self.run_layers(0, self.embedding(input_ids), self.rotary.at(positions), attend_of_layer)

    def run_layers(
        self,
        first: int,
        hidden_states: Tensor,
        rotation: Rotation,
        attend_of_layer: Callable[[int], Attend],
        last: int | None = None,
    ) -> Tensor:
        """Run the layers from `first` on, up to `last` or all. hidden_states: (T, D) f32 before them; returns the same
        after them."""
        for index in range(first, len(self.layers) if last is None else last):
            layer = self.layers[index]
            if hidden_states.device != layer.device:
                hidden_states = hidden_states.to(layer.device)
            if rotation.cos.device != layer.device:
                rotation = rotation.to(layer.device)
            hidden_states = layer.forward(hidden_states, rotation, attend_of_layer(index))
        return hidden_states

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return (T, V) f32 for the residual stream (T, D) f32 of the tokens that need logits; on the ranks of a tensor
        split but the first, those of its own rows."""
        on_head = hidden_states.to(self.final_norm.device)
        (logits,) = self.head(rms_norm(on_head, self.final_norm, self.config.rms_norm_eps))
        return self.joined(logits)

    def joined(self, logits: Tensor) -> Tensor:
        """Return (T, V) f32 for the (T, rows of the head) f32 that are here."""
        return logits if self._join_logits is None else self._join_logits(logits)

    @property
    def has_whole_head(self) -> bool:
        """Whether no other rank has rows of the head."""
        return self._join_logits is None
