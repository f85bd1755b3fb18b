"""A second device without a card: tensors that say they lie elsewhere, and refuse to meet those in host memory.

Numbers are computed by the CPU; what is tested is that everything which must be brought to a device, or back from it,
is. Torch's own `meta` stands for the card, since any build of torch knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

NAME = "meta"
_MAY_CROSS = ("copy_", "_to_copy")


class OnCard(Tensor):
    """A tensor on the card; `held` has its values. Native code gets no pointer to it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCard:
        wrapper: OnCard = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME),
        )
        wrapper.held = held
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        raise AssertionError("the memory of a card is not the host's")

    def numpy(self, *, force: bool = False) -> Any:
        raise AssertionError("the memory of a card is not the host's")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_card() -> Iterator[str]:
    """Let there be a card, whose name is given."""
    with _Mode():
        yield NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    on_card = [isinstance(tensor, OnCard) for tensor in tensors]
    if any(on_card) and name not in _MAY_CROSS:
        # As on a real card: single numbers may come along from host memory, nothing else.
        strangers = [t for t, is_there in zip(tensors, on_card, strict=True) if not is_there and t.dim()]
        assert not strangers, f"{func}: tensors of {[tuple(t.shape) for t in strangers]} lie in host memory"
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if name.endswith("_") and not name.startswith("_") and args and isinstance(args[0], Tensor):
        return args[0]
    there = any(on_card) if wanted is None else torch.device(wanted).type == NAME
    return tree_map(lambda value: OnCard(value) if isinstance(value, Tensor) else value, result) if there else result


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnCard) else value
