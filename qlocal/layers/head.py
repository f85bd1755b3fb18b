"""An output head of 16 bits, held in 8 or 6: decoding reads all of it for every token, and nothing else of it changes.

A tied embedding stays as it is stored, on the map of its file, for look-ups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qlocal.config import STORED
from qlocal.errors import UnsupportedError
from qlocal.ggml_types import GgmlType
from qlocal.kernels import native
from qlocal.kernels.quantize_blocks import Fit, quantize_blocks
from qlocal.schema import HeldHead
from qlocal.weights import BlockWeight, DenseWeight, Weight


def hold(
    weight: Weight, choice: str, add_up: Callable[[Tensor], Tensor] | None = None
) -> tuple[Weight, HeldHead | None]:
    """Return a head as `choice` (one of `config.HEAD_CHOICES`) says, and what that cost.

    weight: (V, D), or one rank's rows of it; then `add_up` adds the ranks' costs. What is quantized already stays as it
    is. Raises UnsupportedError without the native kernels, which
    alone fit blocks here.
    """
    if choice == STORED or not isinstance(weight, DenseWeight):
        return weight, None
    library = native.load()
    if isinstance(library, native.Absent):
        raise UnsupportedError(
            f"the head cannot be held as {choice}: {library.reason}", hint="Leave --head out, or see `qlocal doctor`."
        )
    ggml_type = GgmlType[choice.upper()]
    blocks, errors = quantize_blocks(library, weight.data, ggml_type, Fit.SEARCH)
    costs = torch.cat((errors.sum(0), torch.tensor([weight.data.nbytes, blocks.nbytes]))).double()
    lost, there, stored_bytes, held_bytes = (costs if add_up is None else add_up(costs)).tolist()
    held = HeldHead(choice, lost / there if there > 0 else 0.0, int(stored_bytes), int(held_bytes))
    return BlockWeight(blocks, ggml_type, weight.shape[1], weight.row_map), held
