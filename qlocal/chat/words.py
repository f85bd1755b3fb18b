"""The sentences of the chat, in English; what shows a constant translates it with `t`.

`entry_words.py` has those over a message, `token_words.py` those over the tokens of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qlocal.chat.events import TokenCount, Usage
from qlocal.chat.languages import t
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.store.records import title_of
from qlocal.chat.store.salvage import Salvage
from qlocal.chat.thinking import answer_of
from qlocal.chat.told_errors import told
from qlocal.schema import PromptProgress, QueuePlace

WELCOME = """qlocal

Ask something below.

Enter sends · Ctrl+J is a new line
/ lists the commands · @ takes a file along"""
STILL_BUSY = "An answer is being written: Esc stops it. Your text stays here."
GO_ON_OFFERED = "The server is back: Alt+G lets the answer go on where it ended."
IN_MEMORY = "history in memory only"
NOTHING_TO_REPEAT = "There is no message to answer again."
NOTHING_TO_COPY = "There is no answer to copy."
NO_BLOCK_TO_COPY = "There is no code to copy; Alt+Up puts a cursor on a block."
NO_LINK_YET = "The server is being looked for."
NOTHING_TO_UNFOLD = "No answer here was thought about."

PICKER_KEYS = "type to narrow · Enter takes · Esc goes back"
QUESTION_KEYS = "↑↓ chooses · Enter takes · Esc goes back"

NO_ANSWER_YET = "There is no answer yet."
NO_PROBABILITIES = "Nothing is known of this answer's tokens: our own server with a model that is ready can tell."
SCORING = "The model reads the answer again …"
WRITTEN = "  ← written"
ALTERNATIVES_KEYS = "←→ token · ↑↓ alternative · N P unsure ones · H heat map · Enter forks here · Esc back"

REPLAY_KEYS = "←→ token · N P marked ones · + − mark fewer, more · PgUp PgDn · Esc back"
NEEDS_OWN_SERVER = "That needs our own server with a model that is ready."
LOOKING_FOR_VARIANTS = "Looking for other variants of this model …"
VARIANTS = "Read the answer with"
NO_VARIANT = "There is no other variant of this model: neither in the model folder nor beside it."

NOTHING_TO_COMPARE = "Write what the models shall answer, then compare; or compare after a first answer."
COMPARE = "Which models answer"
COMPARE_KEYS = "Space marks · Enter begins · Esc goes back"
COMPARE_WAITS = " · waits"
COMPARE_LOADS = " · is loaded in place of the one before …"
COMPARE_RUNS = "One engine answers for all, one after the other · ←→ column · Esc stops"
COMPARE_DONE = "←→ column · PgUp PgDn · Enter goes on with this answer · Esc back: all answers stay as branches"
STOPPED = "■ stopped"

NOTHING_TO_EDIT = "There is no message yet."
EDITING = "Editing: Enter makes a branch, Esc leaves it as it was"
NO_BRANCHES = "There is no conversation yet."
TREE = "All branches"
PRUNE = "Delete this message and all below it?"
DELETE_IT = "Delete"
KEEP_IT = "Keep"
BRANCHED_OFF = "This is a new conversation; the old one stays."
NO_SEED = "It is not known how this answer was asked for: only answers of this version have their seed."
NO_CONVERSATION = "There is no conversation yet: it begins with its first message."
NO_TITLE = "Write the title behind it: /rename TITLE"
PINNED = "Pinned: it stays on top of the list."
UNPINNED = "No longer pinned."
PINNED_HEAD = "Pinned"
TODAY = "Today"
YESTERDAY = "Yesterday"
DELETE_CONVERSATION = "Delete the conversation with all its branches?"
NO_FILE = "Write the file behind it: /import-file FILE"
NOTHING_IMPORTED = "The file holds no conversation with words in it."
SEARCH = "Search"
SEARCH_FOR = "Words; single characters in Chinese"
SEARCH_KEYS = "type to search · Enter opens · Esc goes back"
NOTHING_FOUND = "Nothing was found."
HELP_TITLE = "Keys and commands"
HELP_CLOSE = "↑ ↓ scroll · Esc goes back"
HELP_NOTES = "Keys can be changed in config.toml: [chat.keys]. A message that begins with a slash takes two."


def first_line(text: str) -> str:
    """Return the beginning of a text as one line."""
    return title_of(answer_of(text)) if text.strip() else t("(empty)")


def pruned(count: int) -> str:
    """Say how many messages were deleted."""
    return t("{count:,} messages are deleted.").format(count=count)


def renamed(title: str) -> str:
    """Say what the conversation is called now."""
    return t("The conversation is called “{title}” now.").format(title=title)


def tagged(tags: Sequence[str]) -> str:
    """Say which tags the conversation has now."""
    return t("Tags: {tags}").format(tags=" ".join(f"#{tag}" for tag in tags)) if tags else t("No tags.")


def exported(path: Path) -> str:
    """Say where a conversation was written."""
    return t("Written to {path}.").format(path=path)


def imported(count: int) -> str:
    """Say how many conversations were read; the last one is shown."""
    return t("{count:,} conversations were imported; this is the last one.").format(count=count)


def salvaged(salvage: Salvage) -> str:
    """Say what became of a damaged history."""
    kept = t("The history file was damaged; it is kept as {name}.").format(name=salvage.kept.name)
    read = t("Of it {messages:,} messages in {conversations:,} conversations could be read.").format(
        messages=salvage.num_messages, conversations=salvage.num_conversations
    )
    lost = t("{count:,} messages are missing.").format(count=salvage.num_missing) if salvage.num_missing else ""
    cut = t("{count:,} are cut short.").format(count=salvage.num_cut) if salvage.num_cut else ""
    count = salvage.num_untitled
    untitled = t("{count:,} conversations have lost their titles.").format(count=count) if count else ""
    return " ".join(part for part in (kept, read, lost, cut, untitled) if part)


def no_such_command(name: str, hint: str | None) -> str:
    """Say that a slash command is unknown; the text stays in the editor."""
    return t("There is no command /{name}.").format(name=name) + (f" {hint}" if hint else "")


def takes_no_text(name: str) -> str:
    """Say that nothing may stand behind a slash command."""
    return t("/{name} takes no text behind it.").format(name=name)


STATISTICS = "Statistics"
FACTS_KEYS = "↑↓ scroll · Esc back"
LOG_KEYS = "The newest lines come at the end · Esc back"
PLAN = "What loading it would take"
NOTES = "Beside the table"
LOADS_IT = "loads it"
REPORT = "Quantization report"
NO_REPORT = "This checkpoint has no quantization report: `quantize` writes one, `quantize verify` adds what it cost."
NO_LOG = "The log is where that server runs."

HAS_TOOLS = "This answer called tools: its tokens are those of several answers, and cannot be walked or read as one."
TOOLS = "Tools that the model may call"
TOOLS_KEYS = "Space marks · Enter takes · Esc goes back"
APPROVAL = "May the model do this?"
APPROVAL_KEYS = "Y once · A this tool in this conversation · N or Esc no · X never in this conversation"
OWN_TOOL = "a tool of qlocal"
TOOL_NEW = "a new tool of this server; a yes pins its description"
TOOL_CHANGED = "this tool has CHANGED since you agreed to it; a yes pins the new description"


NO_ATTACHMENT = "The message has no paste or file in it; @ takes a file along."
NAME_A_FILE = "Name the file behind it: /file PATH"


def unseen(name: str, passages: Mapping[str, int]) -> str:
    """Say that a document says more to a model than to its reader."""
    kinds = {
        "hidden": t("{count:,} hidden"),
        "white": t("{count:,} in white"),
        "tiny": t("{count:,} too small to read"),
        "comments": t("{count:,} comments"),
    }
    told = ", ".join(kinds[kind].format(count=count) for kind, count in passages.items() if kind in kinds)
    sentence = t("{name} has passages that its readers do not see ({told}): they are sent too, Alt+V shows all of it.")
    return sentence.format(name=name, told=told)


def price(count: TokenCount, tokens_per_s: float | None) -> str:
    """Say what a message would cost before it is sent."""
    if count.prompt_tokens >= count.max_context:
        sentence = t("{tokens:,} tokens, {over:,} more than fit")
        over = count.prompt_tokens - count.max_context + 1
        return sentence.format(tokens=count.prompt_tokens, over=over)
    if count.cached_tokens is None:
        sentence = t("{tokens:,} of {most:,} tokens")
        return sentence.format(tokens=count.prompt_tokens, most=count.max_context)
    new = count.prompt_tokens - count.cached_tokens
    text = t("{cached:,} tokens cached, {new:,} to read").format(cached=count.cached_tokens, new=new)
    if tokens_per_s is None:
        return text
    return text + t(", about {seconds} s").format(seconds=f"{max(1, round(new / tokens_per_s)):,}")


SCHEMAS = "Hold answers to a JSON schema"
NO_SCHEMA = "No schema: answers are free"
SCHEMA_OFF = "Answers are free again."
ROOM = "The conversation does not fit"
CANCEL = "Send nothing"
DOES_NOT_FIT = "The model does not fit"
ANOTHER_MODEL = "Choose another model"
ALL_SENT = "Every message is sent again."
NOTHING_LEFT_OUT = "No message is left out."
SUMMARIZING = "The model summarizes; Esc stops it, and nothing is changed then."
NO_SUMMARY = "The model wrote no summary: nothing is changed."
SUMMARY_CUT = "■ cut at the room that a summary has"
SUMMARY_STAYS = "A summary is not edited: /send-all sends the messages again that it stands for."
FORM_KEYS = "Enter goes on · Ctrl+J is a new line · Esc goes back"
NOTHING_TO_KEEP = "There is nothing to keep: write the prompt first."
NEW_PROMPT = "Text of the prompt; what stands in braces is asked for, {{draft}} is what is being written"
NAME_IT = "What is it called?"
NAME_BEHIND = "Write the name behind it; what is called default is that of new conversations."
IS_KEPT_ALREADY = "There is one of this name"
REPLACE_IT = "Replace it"
NO_SYSTEM = "No system message"
SYSTEM_CHANGED = "The system message of this conversation is changed."
SYSTEM_NONE = "This conversation has no system message: /system TEXT gives it one."


def kept_in(folder: Path) -> str:
    """Say where the texts lie that can be chosen."""
    return t("Files in {folder}").format(folder=folder)


def leave_out_turns(count: int) -> str:
    """Offer not to send the oldest turns any more."""
    return t("Leave out the {count:,} oldest turns; they stay in the history").format(count=count)


def summarize_turns(count: int) -> str:
    """Offer to have the oldest turns summarized."""
    return t("Have the model summarize the {count:,} oldest turns; they stay in the history").format(count=count)


def left_room(tokens: int) -> str:
    """Say what a conversation would have then."""
    return t("leaves {tokens:,} tokens").format(tokens=tokens)


def larger_context(tokens: int) -> str:
    """Offer to load the model with more context."""
    return t("Load the model with a context of {tokens:,} tokens").format(tokens=tokens)


def way_to_fit(max_context: int | None, kv: str | None) -> str:
    """Offer to load a model with options with which it fits."""
    if max_context is not None:
        return larger_context(max_context)
    return t("Load the model with keys and values in {kv}").format(kv=kv)


def sampling_is(fields: dict[str, object]) -> str:
    """Say with which fields a conversation asks."""
    if not fields:
        return t("This conversation is sampled as the model's makers recommend.")
    text = ", ".join(f"{name} {value}" for name, value in fields.items())
    return t("This conversation is sampled with {fields}.").format(fields=text)


def goes_to(endpoint: str) -> str:
    """Say that what is written leaves this machine."""
    return t("Conversations are sent to {endpoint} from here on, all of them that you go on with.").format(
        endpoint=endpoint
    )


def waiting_for(state: LinkState) -> str:
    """Say why a message has not been sent yet."""
    match state.phase:
        case Phase.CHOOSING | Phase.FAILED:
            why = told(state.error) + t(". ") if state.error else ""
            return why + t("Your message waits: choose a model with F2, Esc takes it back from the queue.")
        case _:
            return t("Your message will be sent when the model is ready; Esc takes it back from the queue.")


def queued(place: QueuePlace) -> str:
    """Say where an answer stands in the queue of a server that is busy with others."""
    if place.ahead == 0:
        return t("Waiting for a free place: the next one is yours.")
    return t("Waiting for a free place: {ahead:,} before you.").format(ahead=place.ahead)


def reading(progress: PromptProgress) -> str:
    """Say how far a long prompt has been read."""
    minutes, seconds = divmod(round(progress.left_s), 60)
    left = t("{minutes} min {seconds:02} s") if minutes else t("{seconds} s")
    return t("reading the prompt: {done:,} of {total:,} tokens, {speed:.0f} tokens/s, {left} left").format(
        done=progress.done_tokens,
        total=progress.prompt_tokens,
        speed=progress.tokens_per_s,
        left=left.format(minutes=minutes, seconds=seconds),
    )


def waiting(texts: Sequence[str]) -> str:
    """Say what is sent after the answer that is being written."""
    sentence = t("{count} waiting: {text} · Esc takes it back")
    return sentence.format(count=len(texts), text=title_of(texts[-1]))


def template_unknown(sha256: str) -> str:
    """Warn, once, of a chat template that nobody has compared with its makers'."""
    return t(
        "This model's chat template is none of those that are known (SHA-256 {start}…), and could change what is sent: "
        "`qlocal template show MODEL` prints it."
    ).format(start=sha256[:12])


def not_on_disk(why: str) -> str:
    """Say that nothing more is kept, and what helps."""
    return t(
        "The disk takes nothing more ({why}): from here on the history is in memory alone and ends with the chat. "
        "/export writes a conversation elsewhere; with room on the disk, start the chat again."
    ).format(why=why)


def too_long(count: TokenCount) -> str:
    """Say that a conversation does not fit, with both numbers."""
    return t(
        "The conversation has {tokens:,} tokens, the model reads at most {most:,}: "
        "nothing was sent. Begin a new one with Ctrl+N, or start with a larger --context."
    ).format(tokens=count.prompt_tokens, most=count.max_context)


def cut_at_limit(usage: Usage | None) -> str:
    """Say that an answer ended because no room was left."""
    if usage is None:
        return t("The answer was ended by its limit, not by the model.")
    sentence = t("The answer was ended after {tokens:,} tokens by its limit, not by the model.")
    return sentence.format(tokens=usage.completion_tokens)


def lines_below(count: int) -> str:
    """Say how much has come in below the reader."""
    text = t("↓ 1 new line · Ctrl+End follows") if count == 1 else t("↓ {count:,} new lines · Ctrl+End follows")
    return text.format(count=count)


def theme_is(name: str) -> str:
    """Say which colours are used."""
    return t("Colours: {name}; chat.theme in config.toml keeps them.").format(name=name)


def compare_count(most: int) -> str:
    """Say how many models can be compared."""
    return t("Mark two to {most} models with the space bar.").format(most=most)


def wants_to_call(tool: str, where: str) -> str:
    """Say which tool of whom is to be called."""
    return f"{tool} ({where})"


def tools_hint(folders: Sequence[Path]) -> str:
    """Say which folders tools may look into, and where more is set."""
    if not folders:
        return t("config.toml: [chat] tool_folders = [...] allows searching in files.")
    return t("Folders: {folders}").format(folders=", ".join(str(folder) for folder in folders))


def tools_now(names: Sequence[str]) -> str:
    """Say which tools are offered from now on."""
    if not names:
        return t("The model may call no tools.")
    return t("The model may call: {tools}.").format(tools=", ".join(names))


def schemas_in(folder: Path) -> str:
    """Say where schemas are looked for."""
    return t("files *.json in {folder}").format(folder=folder)


def schema_on(name: str) -> str:
    """Say that answers are held to a schema from now on."""
    return t("Answers are held to the schema {name}; /schema changes it.").format(name=name)
