"""A stored message as the transcript shows it: who speaks, what is known of it, and a note where something went
wrong."""

from __future__ import annotations

from collections.abc import Sequence

from qlocal.chat import words
from qlocal.chat.entry import Entry
from qlocal.chat.languages import t
from qlocal.chat.store.records import Message, MessageState, Role
from qlocal.chat.told_errors import told
from qlocal.chat.tools.shown import rounds_of, woven


def entry_of(message: Message, is_replaced: bool = False) -> Entry:
    """Return a stored message as the transcript shows it. is_replaced: a summary is sent in its place."""
    is_user = message.role is Role.USER
    return Entry(
        entry_id=message.message_id,
        is_user=is_user,
        text=message.content if is_user else woven(message.content, rounds_of(message.meta)),
        head=speaker(message),
        detail=_detail(message, is_replaced),
        note=_note(message),
        is_streaming=message.state is MessageState.STREAMING,
        is_quiet=message.is_left_out,
    )


def speaker(message: Message) -> str:
    """Say who wrote a message."""
    if message.role is Role.USER:
        return t("You")
    if message.is_summary:
        return t("Summary by {model}").format(model=message.model or t("Answer"))
    return message.model or t("Answer")


def _detail(message: Message, is_replaced: bool) -> str:
    parts: list[str] = []
    if not message.meta and not is_replaced and message.siblings == 1:
        return ""  # as of nearly all, where 10,000 are opened
    if message.is_left_out:
        parts.append(t("no longer sent"))
    elif is_replaced:
        parts.append(t("summarized below"))
    if message.stands_for:
        parts.append(t("sent in the place of {count:,} messages").format(count=len(message.stands_for)))
    if isinstance(tokens := message.meta.get("completion_tokens"), int):
        parts.append(t("{tokens:,} tokens").format(tokens=tokens))
    if isinstance(speed := message.meta.get("tokens_per_s"), float):
        parts.append(t("{speed:.1f} tok/s").format(speed=speed))
    if message.siblings > 1:
        parts.append(f"‹{message.sibling_idx + 1}/{message.siblings}›")
    return "".join(f" · {part}" for part in parts)


def _note(message: Message) -> str | None:
    if message.is_summary and message.meta.get("finish_reason") == "length":
        return t(words.SUMMARY_CUT)
    match message.state:
        case MessageState.STOPPED:
            return t(words.STOPPED)
        case MessageState.FAILED:
            return f"■ {told(str(message.meta.get('error') or '')) or t('failed')}"
        case _:
            return None


def thought_head(num_chars: int, *, is_open: bool, is_unfolded: bool) -> str:
    """Return the line that stands for what a model thought, or over it."""
    sentence = t("Thinking … {count} characters") if is_open else t("Thought, {count} characters")
    return f"{'▾' if is_unfolded else '▸'} {sentence.format(count=f'{num_chars:,}')}"


def known_context(branch: Sequence[Message]) -> int | None:
    """Return the tokens of a stored conversation as its last answer counted them."""
    meta = branch[-1].meta if branch and not branch[-1].is_summary else {}
    prompt, completion = meta.get("prompt_tokens"), meta.get("completion_tokens")
    return prompt + completion if isinstance(prompt, int) and isinstance(completion, int) else None
