"""What would make a request fit, or give it more context: every option, alone and one on top of another. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qlocal.config import AUTO, FROM_CONTEXT, HEAD_CHOICES, STORED
from qlocal.errors import PlanError
from qlocal.ggml_types import LAYOUTS
from qlocal.plan import cut
from qlocal.plan.demand import KV_BITS, cache_types, head_of, held_type
from qlocal.plan.placement import Placer
from qlocal.plan.request import ENOUGH_CONTEXT, LOADABLE_SPLITS, MIN_CONTEXT, Request

KV_LADDER = (("f16", "f16"), ("q8", "q8"), ("q8", "q4"), ("q4", "q4"))
"""Types of K and V by falling size, the ones worth having: K needs its bits more than V."""
SMALL_CHUNK = 128
"""Prompt tokens of a step that still keep a card busy."""
NOTHING_HELPS = "Use a smaller or more quantized checkpoint, more devices, or free some memory."


@dataclass(frozen=True)
class Lever:
    """An option as it is typed, and the request with it."""

    option: str
    request: Request

    @property
    def context(self) -> int:
        """The largest context that fits with it; 0 when none does."""
        return best_context(self.request)


def best_context(request: Request) -> int:
    """Return the largest context that fits, with whatever the request lets the host have; 0 when none does."""
    return Placer(request).best_context()


def levers(request: Request) -> list[Lever]:
    """Return every option that asks the devices for less, each alone, what makes answers slow last."""
    return [
        *_heads(request),
        *_splits(request),
        *_slots(request),
        *_chunks(request),
        *_drafts(request),
        *_cache_types(request),
        *_offloads(request),
    ]


def together(request: Request) -> Lever:
    """Return all options at once that give more context one on top of another, but for what goes to the host."""
    best, chosen = best_context(request), list[str]()
    for choose in (_splits, _slots, _chunks, _drafts, _heads, _cache_types):
        last = next(reversed(list(choose(request))), None)
        if last is not None and last.context > best:
            request, best, chosen = last.request, last.context, [*chosen, last.option]
    return Lever(" ".join(chosen), request)


def better_split(request: Request) -> Request:
    """Return the request with a tensor split, where cards allow it and a layer split gives no more context."""
    others = [lever.request for lever in _splits(request) if lever.request.split in LOADABLE_SPLITS]
    # Whole layers are what goes to the host, so where nothing fits the cards a layer split has more ways left.
    return max((*others, request), key=best_context) if best_context(request) else request


def with_cache_types(request: Request) -> Request:
    """Return the request with the types of least loss that fit what is asked for, where it leaves them to the plan.

    Without a context, what fits is a useful one. A smaller cache comes before layers on the host."""
    if AUTO not in (request.key_type, request.value_type):
        return request
    default = cache_types(None, request.dtype)
    ladder = [replace(request, key_type=k, value_type=v) for k, v in dict.fromkeys((default, *KV_LADDER))]
    wanted = request.max_context or min(request.limit, ENOUGH_CONTEXT)
    fitting = (other for other in ladder if fits(on_the_cards(other), wanted))
    return next(fitting, None) or next((other for other in ladder if fits(other, wanted)), ladder[-1])


def on_the_cards(request: Request) -> Request:
    """Return the request without what `auto` would send to the host: what the cards alone are good for."""
    return replace(request, offload="none") if request.offload == "auto" and request.host is not None else request


def largest_contexts(request: Request) -> dict[str, dict[str, int]]:
    """Return by split and by type of K and V the largest context that fits; 0 where none does."""
    by_layers = replace(request, split="layer")
    splits = [by_layers, *(lever.request for lever in _splits(by_layers))]
    found: dict[str, dict[str, int]] = {}
    for other in splits:
        with_types = (replace(other, key_type=k, value_type=v) for k, v in KV_LADDER)
        found[other.split] = {shown_types(r.key_type, r.value_type): best_context(r) for r in with_types}
    return found


def shown_types(key_type: str, value_type: str) -> str:
    """Return types of K and V as `--kv` takes them."""
    return key_type if key_type == value_type else f"{key_type},{value_type}"


def hint(request: Request) -> str:
    """Return what to do so that `request.max_context` fits: a smaller one, one option, or several."""
    wanted = request.max_context
    assert wanted is not None, "only a request for a number of tokens is refused"
    fitting = best_context(request)
    option = next((lever.option for lever in levers(request) if fits(lever.request, wanted)), None)
    option = option or _combination(request, wanted)
    if fitting >= MIN_CONTEXT:
        smaller = f"The largest context that fits is {fitting} tokens"
        return f"{smaller}; {option} makes {wanted} fit." if option else f"{smaller}."
    return f"It fits with {option}." if option else NOTHING_HELPS


def fits(request: Request, context: int) -> bool:
    """Say whether a context fits, with whatever the request lets the host have."""
    return Placer(request).least_offloaded(context) is not None


def _combination(request: Request, wanted: int) -> str | None:
    """Return the fewest options, in the order of what they cost, that make a context fit together."""
    chosen: list[str] = []
    for choose in (_splits, _slots, _chunks, _drafts, _heads, _cache_types, _offloads):
        for lever in choose(request):
            if fits(lever.request, wanted):
                return " ".join([*chosen, lever.option])
        last = next(reversed(list(choose(request))), None)
        if last is not None:
            request, chosen = last.request, [*chosen, last.option]
    return None


def _heads(request: Request) -> Iterator[Lever]:
    stored = head_of(request.checkpoint)
    for choice in HEAD_CHOICES[HEAD_CHOICES.index(request.head) + 1 :]:
        held = held_type(stored, choice)
        if choice != STORED and held is not None and stored.shape[1] % LAYOUTS[held].block_size == 0:
            yield Lever(f"--head {choice}", replace(request, head=choice))


def _cache_types(request: Request) -> Iterator[Lever]:
    bits = KV_BITS[request.key_type] + KV_BITS[request.value_type]
    for key_type, value_type in KV_LADDER:
        if KV_BITS[key_type] + KV_BITS[value_type] < bits and request.dtype != "float32":
            option = f"--kv {shown_types(key_type, value_type)}"
            yield Lever(option, replace(request, key_type=key_type, value_type=value_type))


def _splits(request: Request) -> Iterator[Lever]:
    loadable = not request.is_for_loading or "tensor" in LOADABLE_SPLITS
    several = len(request.places) > 1 and all(place.is_card for place in request.places)
    if several and loadable and request.split == "layer" and _can_be_cut(request):
        yield Lever("--split tensor", replace(request, split="tensor"))


def _can_be_cut(request: Request) -> bool:
    try:
        cut.parts(request.checkpoint.config, [place.room for place in request.places], request.demand.ffn_unit)
    except PlanError:
        return False
    return True


def _offloads(request: Request) -> Iterator[Lever]:
    if request.host is not None and request.split == "layer" and request.offload in ("auto", "none"):
        offload = "experts" if request.checkpoint.architecture.is_moe else "layers"
        yield Lever(f"--offload {offload}", replace(request, offload=offload))


def _chunks(request: Request) -> Iterator[Lever]:
    if request.prefill_chunk > SMALL_CHUNK:
        yield Lever(f"--chunk {SMALL_CHUNK}", replace(request, prefill_chunk=SMALL_CHUNK))


def _drafts(request: Request) -> Iterator[Lever]:
    if request.draft is not None:
        yield Lever(f"--draft {FROM_CONTEXT}", replace(request, guesses=FROM_CONTEXT, draft=None))


def _slots(request: Request) -> Iterator[Lever]:
    if request.slots > 1:
        yield Lever("--slots 1", replace(request, slots=1))
