"""Which layer goes where, as a function of the context: the cards in order, the rest in host memory. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from qlocal.plan import cut
from qlocal.plan.cut import Part
from qlocal.plan.demand import Demand
from qlocal.plan.layout import Held
from qlocal.plan.places import Place
from qlocal.plan.request import ENOUGH_CONTEXT, Request
from qlocal.plan.scratch import step_bytes

CACHE_SHARE = 0.5
"""Of the memory left beside weights and one full context, for more sequences and remembered ones."""
_STEPS = 30
"""Halvings of the search for how full the places become."""


@dataclass(frozen=True)
class Draft:
    """The whole draft model on the device of a share."""

    demand: Demand
    device: str
    weights: Held
    scratch_bytes: int

    @classmethod
    def of(cls, request: Request, place: Place, context: int) -> Draft:
        """Return what the model of a draft's request takes on a place."""
        demand, config = request.demand, request.checkpoint.config
        part, weights = cut.whole(config), demand.head_bytes(place.device, cut.whole(config))
        for index in range(config.num_hidden_layers):
            layer = demand.layer(index, place.device, part)
            weights += layer.attention + layer.ffn
        return cls(demand, place.device, weights, step_bytes(request, context, part, is_card=place.is_card))

    def cache_bytes(self, num_blocks: int) -> int:
        config = self.demand.config
        return self.demand.cache_bytes(num_blocks, self.device, cut.whole(config), range(config.num_hidden_layers))

    def num_bytes(self, num_blocks: int) -> int:
        return self.weights.total + self.cache_bytes(num_blocks) + self.scratch_bytes


@dataclass(frozen=True)
class Share:
    """What a place is given: the head perhaps, and of every layer in `layers` as much as `part` says. draft: the model
    that guesses beside it, if it stands here."""

    place: Place
    part: Part
    layers: tuple[int, ...]
    weights: Held
    scratch_bytes: int
    draft: Draft | None = None

    def cache_bytes(self, demand: Demand, num_blocks: int) -> int:
        """Return the bytes of so many blocks, the draft model's included."""
        own = demand.cache_bytes(num_blocks, self.place.device, self.part, self.layers)
        return own if self.draft is None else own + self.draft.cache_bytes(num_blocks)

    def num_bytes(self, demand: Demand, num_blocks: int) -> int:
        beside = 0 if self.draft is None else self.draft.weights.total + self.draft.scratch_bytes
        return self.weights.total + self.cache_bytes(demand, num_blocks) + self.scratch_bytes + beside


@dataclass(frozen=True)
class Placement:
    """Shares in the order of the places, the host's last where it has one. offloaded: layers of which it has a part."""

    shares: tuple[Share, ...]
    offloaded: int = 0


class Placer:
    """Places one request. Contexts are tokens of one sequence."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._demand = request.demand
        self._num_layers = request.checkpoint.config.num_hidden_layers
        self._whole = cut.whole(request.checkpoint.config)

    def blocks_of(self, context: int) -> int:
        return -(-context // self.request.block_size)

    def largest_context(self, offloaded: int = 0) -> int:
        """Return the largest context up to the limit that fits with so many layers offloaded; 0 when none does."""
        return _largest(self.request.limit, lambda context: self._fits(context, offloaded))

    def best_context(self) -> int:
        """Return the largest context that fits with whatever the request lets the host have; 0 when none does."""
        return _largest(self.request.limit, lambda context: self.least_offloaded(context) is not None)

    def least_offloaded(self, context: int) -> int | None:
        """Return of how few layers the host must take its part, so that a context fits; None where nothing helps."""
        low, high = 0, self._num_layers if self._may_offload else 0
        while low < high:  # the more the host takes, the less is left for the places
            middle = (low + high) // 2
            low, high = (low, middle) if self._dealt(context, middle, 1.0) is not None else (middle + 1, high)
        return low if self._fits(context, low) else None

    @cached_property
    def _may_offload(self) -> bool:
        enough = min(self.request.limit, ENOUGH_CONTEXT)
        return self.request.can_offload and (self.request.offload != "auto" or not self._fits(enough, 0))

    def evenly(self, context: int, offloaded: int = 0) -> Placement:
        """Return the placement that fills all places to the same share of their room, beyond it where it must."""
        low, high = 0.0, 1.0
        while self._dealt(context, offloaded, high) is None:
            low, high = high, 2 * high
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._dealt(context, offloaded, middle) is not None else (middle, high)
        placed = self._dealt(context, offloaded, high)
        assert placed is not None, "the search keeps an upper end that holds everything"
        return placed

    def num_blocks(self, placed: Placement, context: int) -> int:
        """Return the blocks of the cache: one full context for certain; up to one a slot where there is memory left."""
        needed, rooms = self.blocks_of(context), self._cache_rooms(placed, context)

        def holds(num_blocks: int) -> bool:
            return all(self._cache_on(placed, device, num_blocks) <= room for device, room in rooms.items())

        return max(needed, _largest(self.request.slots * needed, holds))

    def _cache_rooms(self, placed: Placement, context: int) -> dict[str, int]:
        """Return the bytes that the cache may take on every device."""
        needed, rooms = self.blocks_of(context), dict[str, int]()
        for share in placed.shares:
            spare = share.place.room - share.num_bytes(self._demand, needed)
            room = share.cache_bytes(self._demand, needed) + int(CACHE_SHARE * spare)
            rooms[share.place.device] = rooms.get(share.place.device, 0) + room
        return rooms

    def _cache_on(self, placed: Placement, device: str, num_blocks: int) -> int:
        shares = (share for share in placed.shares if share.place.device == device)
        return sum(share.cache_bytes(self._demand, num_blocks) for share in shares)

    def _fits(self, context: int, offloaded: int) -> bool:
        placed, blocks = self._dealt(context, offloaded, 1.0), self.blocks_of(context)
        return placed is not None and all(s.num_bytes(self._demand, blocks) <= s.place.room for s in placed.shares)

    def _dealt(self, context: int, offloaded: int, fill: float) -> Placement | None:
        """Give every place as much as `fill` of its room holds; None where something is left over."""
        if self.request.split == "tensor":
            return self._divided(context, fill)
        shares: list[Share] = []
        # The host computes the first layers: the embedding is there already, so the stream moves once.
        start = 0 if self.request.offloads_experts else offloaded
        for index, place in enumerate(self.request.places):
            is_last = index == len(self.request.places) - 1
            share = self._filled(place, start, context, fill, offloaded, has_head=is_last)
            if share is None:
                return None
            start += len(share.layers)
            shares.append(share)
        if start < self._num_layers:
            return None
        return Placement((*_one_scratch(shares), *self._host_share(context, offloaded)), offloaded)

    def _filled(
        self, place: Place, start: int, context: int, fill: float, offloaded: int, *, has_head: bool
    ) -> Share | None:
        """Give one place the layers from `start` that it holds; None where not even the head does."""
        scratch = step_bytes(self.request, context, self._whole, is_card=place.is_card)
        weights = self._demand.head_bytes(place.device, self._whole) if has_head else Held()
        blocks = self.blocks_of(context)
        draft = self._draft(place, context) if has_head else None
        beside = 0 if draft is None else draft.num_bytes(blocks)
        room = max(1, place.room - scratch) * fill - weights.total - beside
        if has_head and room < 0:
            return None
        stop = start
        while stop < self._num_layers:
            layer = self._demand.layer(stop, place.device, self._whole)
            keeps_ffn = stop >= offloaded or not self.request.offloads_experts
            held = layer.attention + layer.ffn if keeps_ffn else layer.attention
            room -= held.total + self._demand.cache_bytes(blocks, place.device, self._whole, (stop,))
            if room < 0:
                break
            weights, stop = weights + held, stop + 1
        layers = tuple(range(start, stop))
        return Share(place, self._whole, layers, weights, scratch if layers or has_head else 0, draft)

    def _draft(self, place: Place, context: int) -> Draft | None:
        """Return the draft model: beside the head, whose rows it saves; of a tensor split, on rank 0, which samples."""
        request = self.request.of_draft
        return None if request is None else Draft.of(request, place, context)

    def _host_share(self, context: int, offloaded: int) -> Iterable[Share]:
        host = self.request.host
        if host is None or offloaded == 0:
            return
        layers = [self._demand.layer(i, host.device, self._whole) for i in range(offloaded)]
        weights = sum((layer.ffn for layer in layers), Held())
        attends = not self.request.offloads_experts
        scratch = step_bytes(self.request, context, self._whole, is_card=False, attends=attends)
        if self.request.offloads_experts:
            yield Share(host, self._whole, (), weights, scratch)
        else:
            weights = sum((layer.attention for layer in layers), weights)
            yield Share(host, self._whole, tuple(range(offloaded)), weights, scratch)

    def _divided(self, context: int, fill: float) -> Placement | None:
        places = self.request.places
        parts = cut.parts(self.request.checkpoint.config, [place.room for place in places], self._demand.ffn_unit)
        shares = tuple(
            self._rank(place, part, context, is_first=index == 0)
            for index, (place, part) in enumerate(zip(places, parts, strict=True))
        )
        blocks = self.blocks_of(context)
        fits = all(share.num_bytes(self._demand, blocks) <= share.place.room * fill for share in shares)
        return Placement(shares) if fits else None

    def _rank(self, place: Place, part: Part, context: int, *, is_first: bool) -> Share:
        layers = tuple(range(self._num_layers))
        weights = self._demand.head_bytes(place.device, part)
        for index in layers:
            layer = self._demand.layer(index, place.device, part)
            weights += layer.attention + layer.ffn
        scratch = step_bytes(self.request, context, part, is_card=place.is_card)
        return Share(place, part, layers, weights, scratch, self._draft(place, context) if is_first else None)


def _one_scratch(shares: list[Share]) -> Iterable[Share]:
    """Shares of one device compute one after the other: they use the same scratch."""
    seen: set[str] = set()
    for share in shares:
        yield replace(share, scratch_bytes=0) if share.place.device in seen else share
        seen.add(share.place.device)


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `limit` that fits, 0 when none does; below one that fits all do."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
