"""The angles of all positions on a card, added up from few: attention needs them where a key bias is kept out."""

from __future__ import annotations

import torch

from qlocal.kernels.triton.attention import KeyAngles, key_block
from qlocal.layers.rotary import Rotary


def key_angles(rotary: Rotary, num_positions: int, block_size: int, device: torch.device) -> KeyAngles:
    """Return the angles of the first of every so many positions that a program reads, and of the places in between."""
    count = key_block(block_size, has_bias=True)
    lanes = rotary.at(torch.arange(count))
    factor = lanes.cos[0, 0, 0]  # the attention factor: the angle is 0
    of_lanes = torch.cat((lanes.cos, lanes.sin), -1).squeeze(1).T / factor  # (Dh, N)
    nearest = of_lanes.half()
    tiles = rotary.at(torch.arange(0, num_positions, count))
    of_tiles = torch.cat((tiles.cos, tiles.sin), -1).squeeze(1)
    both = torch.stack((nearest, (of_lanes - nearest).half()))
    return KeyAngles(of_tiles.contiguous().to(device), both.contiguous().to(device))
