"""What is known of model, answers, memory and checkpoint, as sections of rows. Pure text; the screens draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlocal.chat.languages import t
from qlocal.chat.machine import Machine
from qlocal.chat.store.records import Message, Role
from qlocal.schema import Status

BAR_CELLS = 20


@dataclass(frozen=True)
class Section:
    """A title and rows of a name and its value; a row without a name is a line by itself."""

    title: str
    rows: Sequence[tuple[str, str]]


def answer_section(message: Message | None, *, is_chosen: bool = False) -> Section:
    """Return what is known of an answer's reading and writing. is_chosen: by the cursor, instead of being the last."""
    meta = {} if message is None else message.meta
    prompt, cached = _int(meta, "prompt_tokens"), _int(meta, "cached_tokens") or 0
    written, prefill_s, first_s = _int(meta, "completion_tokens"), _float(meta, "prefill_s"), _float(meta, "first_s")
    rows: list[tuple[str, str]] = []
    if prompt is not None:
        new = prompt - cached
        more = t("{cached:,} more were cached").format(cached=cached)
        if restored := _int(meta, "restored_tokens"):
            more += t(", {restored:,} of them from disk or host memory").format(restored=restored)
        rows.append((t("read"), f"{_at_speed(new, new / prefill_s if prefill_s and new > 0 else None)} ({more})"))
    if written is not None:
        rows.append((t("written"), _at_speed(written, _float(meta, "tokens_per_s"))))
    if first_s is not None:
        rows.append((t("time to first token"), f"{first_s:.2f} s"))
    drafted, accepted = _int(meta, "drafted_tokens"), _int(meta, "accepted_tokens") or 0
    if drafted:
        sentence = t("{accepted:,} of {drafted:,} were right ({share:.0%})")
        rows.append((t("guesses"), sentence.format(accepted=accepted, drafted=drafted, share=accepted / drafted)))
    title = t("Answer at the cursor") if is_chosen else t("Last answer")
    return Section(title, rows or [("", t("None in this conversation yet."))])


def _at_speed(num_tokens: int, tokens_per_s: float | None) -> str:
    text = t("{tokens:,} tokens").format(tokens=num_tokens)
    return text + t(" at {speed:,.1f} tok/s").format(speed=tokens_per_s) if tokens_per_s else text


def conversation_section(branch: Iterable[Message]) -> Section:
    """Return what all answers of the branch took together."""
    answers = [message for message in branch if message.role is Role.ASSISTANT]
    read = sum((_int(m.meta, "prompt_tokens") or 0) - (_int(m.meta, "cached_tokens") or 0) for m in answers)
    cached = sum(_int(m.meta, "cached_tokens") or 0 for m in answers)
    written = sum(_int(m.meta, "completion_tokens") or 0 for m in answers)
    told = t("{read:,} read, {cached:,} cached, {written:,} written").format(read=read, cached=cached, written=written)
    return Section(t("This branch"), [(t("answers"), f"{len(answers):,}"), (t("tokens"), told)])


def model_section(status: Status | None, model: str | None) -> Section:
    """Return what is loaded, and how."""
    if status is None:
        return Section(t("Model"), [(t("name"), model or t("none")), ("", t("Another server's: it tells no more."))])
    plan = status.plan or {}
    rows = [(t("name"), status.model or t("none")), (t("state"), t(status.state.value))]
    if status.path:
        rows.append((t("path"), status.path))
    if plan:
        context = t("{tokens:,} tokens for {slots} conversations")
        rows.append((t("context"), context.format(tokens=plan.get("max_context", 0), slots=plan.get("slots", 1))))
        rows.append((t("keys and values"), f"{plan.get('key_type')}, {plan.get('value_type')}"))
        split = t("{split}, head {head}, guesses by {guesses}")
        told = split.format(split=plan.get("split"), head=plan.get("head"), guesses=_guesses(plan))
        rows.append((t("split"), told))
    if status.held_head is not None:
        rows.append((t("head"), status.held_head.sentence))
    if status.progress is not None:
        rows.append((t("loading"), f"{status.progress.stage} {bar(status.progress.done, status.progress.total)}"))
        for device, count in status.progress.layers.items():
            if len(count) == 2:
                layers = t("{done} of {total} layers").format(done=count[0], total=count[1])
                rows.append((f"  {device}", f"{bar(count[0], count[1])} {layers}"))
    rows.append((t("queue"), queue_words(status)))
    return Section(t("Model"), rows)


def queue_words(status: Status) -> str:
    """Return how many answers of all clients are being written, and how many wait."""
    slots = int((status.plan or {}).get("slots") or 1)
    waiting = max(0, status.in_flight - slots)
    sentence = t("{working} at work, {waiting} waiting, {slots} at once at most")
    return sentence.format(working=status.in_flight - waiting, waiting=waiting, slots=slots)


def memory_section(status: Status | None, machine: Machine) -> Section:
    """Return planned against actual by device, and what the machine holds besides."""
    rows: list[tuple[str, str]] = []
    plan, used = (status.plan or {}, status.used or {}) if status is not None else ({}, {})
    for part in plan.get("devices", ()):
        device = str(part["device"])
        planned = part["weight_bytes"] + part["mapped_bytes"] + part["cache_bytes"] + part["scratch_bytes"]
        shares = t("planned {planned}: weights {weights}, cache {cache}, steps {steps}").format(
            planned=size(planned),
            weights=size(part["weight_bytes"] + part["mapped_bytes"]),
            cache=size(part["cache_bytes"]),
            steps=size(part["scratch_bytes"]),
        )
        rows.append((device, shares))
        if device in used:
            took = t("loading took {size} ({share:.0%} of the plan)")
            rows.append(("", took.format(size=size(used[device]), share=used[device] / max(1, planned))))
    for device, card in machine.cards.items():
        told = t("the driver does not tell") if card is None else _in_use(*card)
        rows.append((t("{device} now").format(device=device), told))
    rows.append((t("memory now"), _in_use(machine.host_used, machine.host_total)))
    if machine.server is not None:
        held = t("the server and its engine: {size}, mapped files included")
        rows.append(("", held.format(size=size(machine.server))))
    return Section(t("Memory"), rows)


def _in_use(used: int, total: int) -> str:
    told = t("{used} of {total} in use").format(used=size(used), total=size(total))
    return f"{bar(used, total)} {told}"


def report_sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the summary of a report that `quantize` wrote; fields that are no text or number are left out."""
    named = (
        (t("model"), "model"),
        (t("result"), "result"),
        (t("format"), "format"),
        (t("method"), "method"),
        (t("made by"), "tool"),
        (t("calibration"), "calibration"),
    )
    facts = [(name, str(report[key])) for name, key in named if isinstance(report.get(key), str)]
    total, bits = _int(report, "tensor_bytes"), _float(report, "bits_per_weight")
    if total is not None and bits is not None:
        facts.append((t("size"), t("{size}, {bits:.3f} bits a weight").format(size=size(total), bits=bits)))
    if (loss := _float(report, "mean_loss")) is not None:
        facts.append((t("mean loss"), f"{loss:.5f}"))
    sections = [Section(t("Checkpoint"), facts)]
    if isinstance(verify := report.get("verify"), Mapping):
        sections.append(Section(t("Held against its source"), _flat(verify)))
    if isinstance(by_type := report.get("bytes_by_type"), Mapping):
        rows = [(str(name), size(n)) for name, n in by_type.items() if isinstance(n, int)]
        sections.append(Section(t("Bytes by type"), rows))
    if isinstance(losses := report.get("losses"), Mapping):
        numbers = {str(k): v for k, v in losses.items() if isinstance(v, int | float)}
        worst = sorted(numbers.items(), key=lambda item: -item[1])[:8]
        sections.append(Section(t("Largest losses"), [(name, f"{value:.5f}") for name, value in worst]))
    if isinstance(notes := report.get("notes"), list) and notes:
        sections.append(Section(t("Notes"), [("", str(note)) for note in notes]))
    return sections


def size(num_bytes: int) -> str:
    """Return bytes in the units of the plan."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and not prefix:
            rows += _flat(value, f"{key} ")
        elif isinstance(value, bool | str):
            rows.append((name, str(value)))
        elif isinstance(value, int | float):
            rows.append((name, f"{value:.5g}"))
    return rows[:40]


def bar(done: int, total: int) -> str:
    """Return how much of a whole something is."""
    filled = round(BAR_CELLS * min(1.0, done / total)) if total > 0 else 0
    return "━" * filled + "╌" * (BAR_CELLS - filled)


def _guesses(plan: Mapping[str, Any]) -> str:
    return str(plan.get("guesses") or t("nobody")).rsplit("/", 1)[-1]


def _int(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
