"""What is known of model, answers, memory and checkpoint, as sections of rows. Pure text; the screens draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlocal.chat.machine import Machine
from qlocal.chat.store.records import Message, Role
from qlocal.schema import Status

BAR_CELLS = 20


@dataclass(frozen=True)
class Section:
    """A title and rows of a name and its value; a row without a name is a line by itself."""

    title: str
    rows: Sequence[tuple[str, str]]


def answer_section(message: Message | None) -> Section:
    """Return what is known of the last answer's reading and writing."""
    meta = {} if message is None else message.meta
    prompt, cached = _int(meta, "prompt_tokens"), _int(meta, "cached_tokens") or 0
    written, prefill_s, first_s = _int(meta, "completion_tokens"), _float(meta, "prefill_s"), _float(meta, "first_s")
    rows: list[tuple[str, str]] = []
    if prompt is not None:
        speed = f" at {(prompt - cached) / prefill_s:,.1f} tok/s" if prefill_s and prompt > cached else ""
        restored = _int(meta, "restored_tokens")
        disk = f", {restored:,} of them from disk or host memory" if restored else ""
        rows.append(("read", f"{prompt - cached:,} tokens{speed} ({cached:,} more were cached{disk})"))
    if written is not None:
        speed_s = _float(meta, "tokens_per_s")
        rows.append(("written", f"{written:,} tokens" + (f" at {speed_s:,.1f} tok/s" if speed_s else "")))
    if first_s is not None:
        rows.append(("time to first token", f"{first_s:.2f} s"))
    drafted, accepted = _int(meta, "drafted_tokens"), _int(meta, "accepted_tokens")
    if drafted:
        rows.append(("guesses", f"{accepted or 0:,} of {drafted:,} were right ({(accepted or 0) / drafted:.0%})"))
    return Section("Last answer", rows or [("", "None in this conversation yet.")])


def conversation_section(branch: Iterable[Message]) -> Section:
    """Return what all answers of the branch took together."""
    answers = [message for message in branch if message.role is Role.ASSISTANT]
    read = sum((_int(m.meta, "prompt_tokens") or 0) - (_int(m.meta, "cached_tokens") or 0) for m in answers)
    cached = sum(_int(m.meta, "cached_tokens") or 0 for m in answers)
    written = sum(_int(m.meta, "completion_tokens") or 0 for m in answers)
    return Section(
        "This branch",
        [("answers", f"{len(answers):,}"), ("tokens", f"{read:,} read, {cached:,} cached, {written:,} written")],
    )


def model_section(status: Status | None, model: str | None) -> Section:
    """Return what is loaded, and how."""
    if status is None:
        return Section("Model", [("name", model or "none"), ("", "Another server's: it tells no more.")])
    plan = status.plan or {}
    rows = [("name", status.model or "none"), ("state", status.state.value)]
    if status.path:
        rows.append(("path", status.path))
    if plan:
        rows.append(("context", f"{plan.get('max_context', 0):,} tokens for {plan.get('slots', 1)} conversations"))
        rows.append(("keys and values", f"{plan.get('key_type')}, {plan.get('value_type')}"))
        rows.append(("split", f"{plan.get('split')}, head {plan.get('head')}, guesses by {_guesses(plan)}"))
    if status.held_head is not None:
        rows.append(("head", status.held_head.sentence))
    if status.progress is not None:
        rows.append(("loading", f"{status.progress.stage} {_bar(status.progress.done, status.progress.total)}"))
        for device, count in status.progress.layers.items():
            if len(count) == 2:
                rows.append((f"  {device}", f"{_bar(count[0], count[1])} {count[0]} of {count[1]} layers"))
    rows.append(("queue", queue_words(status)))
    return Section("Model", rows)


def queue_words(status: Status) -> str:
    """Return how many answers of all clients are being written, and how many wait."""
    slots = int((status.plan or {}).get("slots") or 1)
    waiting = max(0, status.in_flight - slots)
    return f"{status.in_flight - waiting} at work, {waiting} waiting, {slots} at once at most"


def memory_section(status: Status | None, machine: Machine) -> Section:
    """Return planned against actual by device, and what the machine holds besides."""
    rows: list[tuple[str, str]] = []
    plan, used = (status.plan or {}, status.used or {}) if status is not None else ({}, {})
    for part in plan.get("devices", ()):
        device = str(part["device"])
        planned = part["weight_bytes"] + part["mapped_bytes"] + part["cache_bytes"] + part["scratch_bytes"]
        shares = f"weights {size(part['weight_bytes'] + part['mapped_bytes'])}, cache {size(part['cache_bytes'])}"
        rows.append((device, f"planned {size(planned)}: {shares}, steps {size(part['scratch_bytes'])}"))
        if device in used:
            rows.append(("", f"loading took {size(used[device])} ({used[device] / max(1, planned):.0%} of the plan)"))
    for device, card in machine.cards.items():
        told = "the driver does not tell" if card is None else f"{size(card[0])} of {size(card[1])} in use"
        rows.append((f"{device} now", told if card is None else f"{_bar(*card)} {told}"))
    host = f"{_bar(machine.host_used, machine.host_total)} {size(machine.host_used)} of {size(machine.host_total)}"
    rows.append(("memory now", f"{host} in use"))
    if machine.server is not None:
        rows.append(("", f"the server and its engine: {size(machine.server)}, mapped files included"))
    return Section("Memory", rows)


def report_sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the summary of a report that `quantize` wrote; fields that are no text or number are left out."""
    facts = [
        (name, str(report[key]))
        for name, key in (("model", "model"), ("result", "result"), ("format", "format"), ("method", "method"))
        if isinstance(report.get(key), str)
    ]
    facts += [("made by", str(report["tool"]))] if isinstance(report.get("tool"), str) else []
    facts += [("calibration", str(report["calibration"]))] if isinstance(report.get("calibration"), str) else []
    total, bits = _int(report, "tensor_bytes"), _float(report, "bits_per_weight")
    if total is not None and bits is not None:
        facts.append(("size", f"{size(total)}, {bits:.3f} bits a weight"))
    if (loss := _float(report, "mean_loss")) is not None:
        facts.append(("mean loss", f"{loss:.5f}"))
    sections = [Section("Checkpoint", facts)]
    if isinstance(verify := report.get("verify"), Mapping):
        sections.append(Section("Held against its source", _flat(verify)))
    if isinstance(by_type := report.get("bytes_by_type"), Mapping):
        rows = [(str(name), size(n)) for name, n in by_type.items() if isinstance(n, int)]
        sections.append(Section("Bytes by type", rows))
    if isinstance(losses := report.get("losses"), Mapping):
        numbers = {str(k): v for k, v in losses.items() if isinstance(v, int | float)}
        worst = sorted(numbers.items(), key=lambda item: -item[1])[:8]
        sections.append(Section("Largest losses", [(name, f"{value:.5f}") for name, value in worst]))
    if isinstance(notes := report.get("notes"), list) and notes:
        sections.append(Section("Notes", [("", str(note)) for note in notes]))
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


def _bar(done: int, total: int) -> str:
    filled = round(BAR_CELLS * min(1.0, done / total)) if total > 0 else 0
    return "━" * filled + "╌" * (BAR_CELLS - filled)


def _guesses(plan: Mapping[str, Any]) -> str:
    return str(plan.get("guesses") or "nobody").rsplit("/", 1)[-1]


def _int(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
