"""What the server says of a load, in the language that is spoken. It speaks English; unknown sentences stay so."""

from __future__ import annotations

import re

from qlocal.chat.languages import t

LOADING = re.compile(r"loading (.+) for ([\d,]+) tokens(?:, (layer|tensor) split)?")
WAITING = re.compile(r"waiting for other nodes at (.+)")
CHANGING = re.compile(r"the server that runs loads (\S+)( again)?(?:, (.+))?")

MEMORY = re.compile(r"Context ([\d,]+) in (\S+): (.+)")
PART = re.compile(r"(\S+) (\S+ [MG]iB) weights, (\S+ [MG]iB) cache, (\S+ [MG]iB) steps(?:, (\S+ [MG]iB) in use)?")


def stage(told: str) -> str:
    """Return a stage of loading as the status line shows it."""
    if found := LOADING.fullmatch(told):
        places, tokens, split = found.groups()
        text = t("loading {places} for {tokens} tokens").format(places=_places(places), tokens=tokens)
        match split:
            case "layer":
                return text + t(", layer split")
            case "tensor":
                return text + t(", tensor split")
            case _:
                return text
    if found := WAITING.fullmatch(told):
        return t("waiting for other nodes at {place}").format(place=found[1])
    if found := CHANGING.fullmatch(told):
        text = t("the server that runs loads {model} again") if found[2] else t("the server that runs loads {model}")
        return text.format(model=found[1]) + (f", {found[3]}" if found[3] else "")
    match told:
        case "reading headers and tokenizer":
            return t("reading headers and tokenizer")
        case "starting the engine again":
            return t("starting the engine again")
        case _:
            return told


def memory(told: str) -> str:
    """Return what the server says of the memory that is planned and in use."""
    found = MEMORY.fullmatch(told)
    parts = [PART.fullmatch(part) for part in found[3].split("; ")] if found else [None]
    known = [part for part in parts if part is not None]
    if found is None or len(known) < len(parts):
        return told
    shown = t("; ").join(map(_part, known))
    return t("Context {tokens} in {types}: {parts}").format(tokens=found[1], types=found[2], parts=shown)


def _part(found: re.Match[str]) -> str:
    device, weights, cache, steps, used = found.groups()
    planned = t("{device} {weights} weights, {cache} cache, {steps} steps").format(
        device=device, weights=weights, cache=cache, steps=steps
    )
    return planned if used is None else planned + t(", {used} in use").format(used=used)


def _places(text: str) -> str:
    places = (part.rsplit(" on ", 1) for part in text.split(" and "))
    return t(" and ").join(t("{size} on {device}").format(size=size, device=device) for size, device in places)
