"""The features of the chat, a file each; and all actions in one registry, for keys, palette and slash commands.

The order of `FEATURES` is that of footer and help.
"""

from __future__ import annotations

from qlocal.chat.actions import Action
from qlocal.chat.features.alternatives import Alternatives
from qlocal.chat.features.appearance import Appearance
from qlocal.chat.features.asking import Asking
from qlocal.chat.features.base import Feature
from qlocal.chat.features.commands import Commands
from qlocal.chat.features.compare import Compare
from qlocal.chat.features.completion import Completion
from qlocal.chat.features.conversations import Conversations
from qlocal.chat.features.drafting import Drafting
from qlocal.chat.features.drafts import Drafts
from qlocal.chat.features.editing import Editing
from qlocal.chat.features.exchanging import Exchanging
from qlocal.chat.features.finding import Finding
from qlocal.chat.features.fitting import Fitting
from qlocal.chat.features.knowing import Knowing
from qlocal.chat.features.ledger import Ledger
from qlocal.chat.features.models import Models
from qlocal.chat.features.program import Program
from qlocal.chat.features.prompts import Prompts
from qlocal.chat.features.reading import Reading
from qlocal.chat.features.replay import Replays
from qlocal.chat.features.room import Room
from qlocal.chat.features.structured import Structured
from qlocal.chat.features.summaries import Summaries
from qlocal.chat.features.tools import Tools
from qlocal.chat.features.turns import Turns

FEATURES: tuple[type[Feature], ...] = (
    Turns,
    Editing,
    Conversations,
    Finding,
    Exchanging,
    Models,
    Fitting,
    Reading,
    Alternatives,
    Replays,
    Compare,
    Knowing,
    Drafting,
    Prompts,
    Asking,
    Ledger,
    Room,
    Summaries,
    Tools,
    Structured,
    Commands,
    Completion,
    Drafts,
    Appearance,
    Program,
)

OWNERS: dict[str, type[Feature]] = {action.name: kind for kind in FEATURES for action in kind.ACTIONS}
"""Which feature does an action, by the action's name."""

ACTIONS: tuple[Action, ...] = tuple(action for kind in FEATURES for action in kind.ACTIONS)
