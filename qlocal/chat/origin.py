"""What made an answer: model, files, number types, sampler and seed, kept with it so that it can be made again.

Pure; of the model's files only a hash is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qlocal.chat.facts import Section
from qlocal.chat.languages import t
from qlocal.chat.link_state import LinkState
from qlocal.chat.store.records import Message

SHOWN_DIGITS = 16


def made_by(state: LinkState) -> dict[str, Any]:
    """Return what is known of the model and the engine, beside the model's name."""
    status = state.status
    if status is None:
        return {} if state.endpoint is None else {"endpoint": state.endpoint}
    plan, head = status.plan or {}, status.held_head
    return {
        "version": status.version,
        "path": status.path,
        "weights": status.weights,
        "head": None if head is None else asdict(head),
        "dtype": plan.get("dtype"),
        "key_type": plan.get("key_type"),
        "value_type": plan.get("value_type"),
        "template_sha256": None if status.template is None else status.template.sha256,
    }


def asked_for(options: Mapping[str, Any], state: LinkState) -> dict[str, Any]:
    """Return all fields that choose an answer's tokens, the model's own where the request names none.

    The makers' recommendation is part of the model's files: kept, it still holds when those change."""
    makers = {} if state.status is None else state.status.sampling or {}
    return {**makers, **options}


def changes(before: Message, after: Message) -> list[str]:
    """Return what was another when two answers were made, in words; what is not known of one of them is left out."""
    found = []
    if before.model != after.model:
        found.append(t("the model (then {before}, now {now})").format(before=before.model, now=after.model))
    old, new = _made_by(before), _made_by(after)
    if before.model == after.model and _differs(old, new, "weights"):
        found.append(t("the model's files"))
    if _differs(old, new, "key_type") or _differs(old, new, "value_type"):
        sentence = t("the type of keys and values (then {before}, now {now})")
        found.append(sentence.format(before=_cache_types(old), now=_cache_types(new)))
    others = {
        "head": t("how the head is held"),
        "dtype": t("the type that is computed in"),
        "template_sha256": t("the chat template"),
        "version": t("the version of qlocal"),
    }
    return found + [words for name, words in others.items() if _differs(old, new, name)]


def repeated(before: Message, after: Message) -> str:
    """Say whether an answer came out as it was, and what has changed since."""
    since = ", ".join(changes(before, after))
    if before.content == after.content:
        if since:
            return t("The same text again, though since then have changed: {changes}.").format(changes=since)
        return t("The same text again.")
    if since:
        return t("Another text: since then have changed {changes}.").format(changes=since)
    return t("Another text, with the same seed: other kernels or other company made it.")


def origin_section(message: Message | None) -> Section:
    """Return what made an answer, for its details."""
    title = t("What made it")
    if message is None or not (message.meta.get("made_by") or message.meta.get("asked")):
        return Section(title, [("", t("Nothing was kept of that."))])
    found, asked = _made_by(message), dict(_mapping(message.meta.get("asked")))
    rows = [(t("name"), message.model or t("none"))]
    known = {"path": t("path"), "version": "qlocal", "endpoint": t("server")}
    rows += [(words, str(found[name])) for name, words in known.items() if found.get(name)]
    if weights := found.get("weights"):
        rows.append((t("hash of its files"), str(weights)[:SHOWN_DIGITS]))
    if template := found.get("template_sha256"):
        rows.append((t("hash of its template"), str(template)[:SHOWN_DIGITS]))
    if found.get("key_type"):
        rows.append((t("keys and values"), _cache_types(found)))
    seed, form = asked.pop("seed", None), asked.pop("response_format", None)
    if asked:
        rows.append((t("sampler"), ", ".join(f"{name} {_short(value)}" for name, value in asked.items())))
    if seed is not None:
        rows.append((t("seed"), str(seed)))
    if form is not None:
        rows.append((t("held to"), t("a JSON schema")))
    return Section(title, rows)


def _made_by(message: Message) -> Mapping[str, Any]:
    return _mapping(message.meta.get("made_by"))


def _mapping(value: object) -> Mapping[str, Any]:
    # Histories are imported, and edited by hand: what is none says nothing.
    return value if isinstance(value, Mapping) else {}


def _differs(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> bool:
    return old.get(name) is not None and new.get(name) is not None and old[name] != new[name]


def _cache_types(values: Mapping[str, Any]) -> str:
    return f"{values.get('key_type')}, {values.get('value_type')}"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
