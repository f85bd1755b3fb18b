"""A conversation as Markdown, HTML or JSON. No Textual, no files: texts."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Sequence
from typing import Any

from qlocal.chat.store.records import Conversation, Message, Role
from qlocal.clean import clean, clean_line

FORMAT, VERSION = "qlocal-conversations", 1
SUFFIXES = (".md", ".json", ".html")

_STYLE = """
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
article { margin: 1rem 0; padding: .5rem 1rem; border-left: .25rem solid #8884; }
article.user { background: #8881; border-color: #48f; }
header { color: #888; font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; margin: 0; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } }
"""


def to_markdown(conversation: Conversation, branch: Sequence[Message]) -> str:
    """Return the branch that is shown, a heading a message."""
    parts = [f"# {clean_line(conversation.title)}", ""]
    if conversation.system:
        parts += ["## System", "", clean(conversation.system), ""]
    for message in branch:
        parts += [f"## {_who(message)}", "", clean(message.content), ""]
    return "\n".join(parts)


def to_html(conversation: Conversation, branch: Sequence[Message]) -> str:
    """Return the branch that is shown as one page that needs nothing else: no scripts, no links, every text escaped."""
    title = html.escape(clean_line(conversation.title))
    body = [f"<h1>{title}</h1>"]
    if conversation.system:
        body.append(_article("system", "System", conversation.system))
    body += [_article(message.role.value, _who(message), message.content) for message in branch]
    # Nothing may be loaded or run, whatever a message says.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def to_json(conversations: Sequence[tuple[Conversation, Sequence[Message]]]) -> str:
    """Return whole conversations with all their branches, as `importing.read` takes them."""
    listed = [
        {
            "title": conversation.title,
            "model": conversation.model,
            "system": conversation.system,
            "created_at": conversation.created_at,
            "updated_at": conversation.updated_at,
            "tags": list(conversation.tags),
            "sampling": conversation.sampling,
            "leaf": conversation.leaf_id,
            "messages": [_message(message) for message in messages],
        }
        for conversation, messages in conversations
    ]
    whole = {"format": FORMAT, "version": VERSION, "conversations": listed}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": message.message_id,
        "parent": message.parent_id,
        "role": message.role.value,
        "content": message.content,
        "state": message.state.value,
        "model": message.model,
        "created_at": message.created_at,
        "meta": message.meta,
    }


def _article(kind: str, who: str, text: str) -> str:
    return f'<article class="{kind}"><header>{html.escape(who)}</header><pre>{html.escape(clean(text))}</pre></article>'


def _who(message: Message) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(message.created_at))
    writer = "You" if message.role is Role.USER else clean_line(message.model or "Answer")
    return f"{'Summary by ' if message.is_summary else ''}{writer} · {when}"
