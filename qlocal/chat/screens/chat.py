"""The chat: transcript, prompt, status line. Composes them and hands on what happens; features do the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.errors import NoWidget
from textual.geometry import Offset
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static, TextArea

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.desk import Desk
from qlocal.chat.features import ACTIONS, FEATURES, OWNERS
from qlocal.chat.features.commands import PREFIX, Commands
from qlocal.chat.features.completion import Completion
from qlocal.chat.features.drafting import Drafting
from qlocal.chat.features.drafts import Drafts
from qlocal.chat.features.editing import Editing
from qlocal.chat.features.finding import Finding
from qlocal.chat.features.models import Models
from qlocal.chat.features.turns import Turns
from qlocal.chat.languages import t
from qlocal.chat.link_state import Link, LinkState, Phase
from qlocal.chat.messages import (
    AttachmentAdded,
    ConversationChosen,
    LinesBelow,
    PromptSubmitted,
    SuggestionKey,
    SuggestionTaken,
)
from qlocal.chat.stages import memory, stage
from qlocal.chat.store.salvage import Salvage
from qlocal.chat.store.threaded import Store
from qlocal.chat.widgets.notice import Notice
from qlocal.chat.widgets.prompt import Prompt
from qlocal.chat.widgets.sidebar import Sidebar
from qlocal.chat.widgets.status_bar import StatusBar
from qlocal.chat.widgets.suggestions import Suggestions
from qlocal.chat.widgets.transcript import Transcript


class ChatScreen(Screen[None]):
    """One conversation at a time. Usable from the first paint; what needs a model waits for it and says so."""

    CSS_PATH = "chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [action.binding() for action in ACTIONS if action.keys]

    def __init__(
        self,
        store: Store,
        system: str | None,
        sampling: Mapping[str, Any],
        *,
        has_model: bool,
        write_terminal: Callable[[str], bool],
    ) -> None:
        """system, sampling: of new conversations."""
        super().__init__()
        self._has_model = has_model
        self.desk = Desk(self, store, system, sampling, write_terminal)
        self.desk.add_features(FEATURES)

    def compose(self) -> ComposeResult:
        yield Sidebar(id="sidebar")
        yield Static(t(words.WELCOME), id="welcome", markup=False)
        yield Transcript(id="transcript")
        yield Static(id="below", markup=False)
        yield Notice(id="notice")
        yield Suggestions(id="suggestions")
        yield Prompt(id="prompt")
        yield StatusBar(id="status")

    def on_mount(self) -> None:
        self.query_one("#below").display = False
        self.desk.show_branch()
        # A cursor that blinks draws twice a second for ever: most of what an idle chat would take.
        self.desk.prompt.cursor_blink = False
        self.call_after_refresh(self.show_footer)
        self.desk.prompt.focus()

    def on_resize(self) -> None:
        self.show_footer()

    def show_footer(self) -> None:
        """Show the keys that are used most, as they are on this machine, as many as there is room for."""
        self.desk.prompt.border_subtitle = self.desk.feature(Commands).footer(self.size.width - 6)

    # What the app tells.

    def use_link(self, link: Link) -> None:
        """Take the link to talk with, once it is made."""
        self.desk.link = link
        if not self._has_model:
            self.desk.feature(Models).choose_model()

    def show_link(self, state: LinkState) -> None:
        """Show a new state of server and model."""
        before, self.desk.link_state = self.desk.link_state, state
        for feature in self.desk.features:
            feature.on_link(before, state)
        is_busy = self.desk.feature(Turns).is_busy
        if state.error and state.error != before.error:
            self.desk.warn(state.error)
        elif state.phase is Phase.READY and before.error and not is_busy:
            self.desk.notice.clear()
        if state.memory and state.memory != before.memory and not state.error and not is_busy:
            self.desk.say(memory(state.memory))
        template, was = (None if s.status is None else s.status.template for s in (state, before))
        if template is not None and template.is_new and template != was:
            self.desk.warn(words.template_unknown(template.sha256))
        self.desk.update_status(
            model=state.model,
            state=stage(state.stage) if state.stage else state.phase.value,
            fraction=state.fraction,
            max_context=state.max_context,
            others=0 if state.status is None else max(0, state.status.in_flight - is_busy),
        )

    def go_on_in_memory(self, why: str) -> None:
        """Say, and go on saying, that nothing more reaches the disk."""
        self.desk.notice.keep(words.not_on_disk(why))
        self.desk.update_status(warning=t(words.IN_MEMORY))

    def tell_of_salvage(self, salvage: Salvage) -> None:
        """Say what became of a damaged history."""
        self.desk.notice.keep(words.salvaged(salvage))

    def say(self, sentence: str) -> None:
        """Show a sentence beside the prompt."""
        self.desk.say(sentence)

    async def use_history(self) -> None:
        """Take over what was sent in earlier sessions; the store is open now."""
        self.desk.prompt.set_history(await self.desk.store.run(lambda history: history.recent_prompts()))
        if not self.desk.prompt.text:
            await self.desk.feature(Drafts).restore()

    # What the user does.

    def get_widget_and_offset_at(self, x: int, y: int) -> tuple[Widget | None, Offset | None]:
        """Return what the mouse is over, for selecting text; a selection that began in the transcript stays there."""
        transcript = self.desk.transcript
        state = self._select_state
        is_dragged = self._selecting and state is not None and state.start.content_widget is transcript
        corner = transcript.content_region.offset
        if transcript.is_attached and (is_dragged or self._is_over(transcript, x, y)):
            return transcript, transcript.place_at(x - corner.x, y - corner.y)
        return super().get_widget_and_offset_at(x, y)

    def _is_over(self, widget: Widget, x: int, y: int) -> bool:
        try:
            return self.get_widget_at(x, y)[0] is widget
        except NoWidget:
            return False

    def action_do(self, name: str) -> None:
        """Do an action of the registry, by its key. Esc closes an open list before it stops an answer."""
        if name == "stop" and self.desk.prompt.is_completing:
            self.desk.feature(Completion).on_key("escape")
        elif name != "stop" or not self.desk.feature(Editing).leave():
            self.do(name)

    def do(self, name: str, argument: str = "") -> None:
        """Do an action of the registry. argument: what stands behind a slash command that takes something."""
        method = getattr(self.desk.feature(OWNERS[name]), name)
        takes_text = next(action.argument for action in ACTIONS if action.name == name)
        method(argument) if takes_text else method()

    @property
    def actions(self) -> tuple[Action, ...]:
        """All actions, in the order of help."""
        return ACTIONS

    @on(PromptSubmitted)
    def send(self, event: PromptSubmitted) -> None:
        if not self.desk.feature(Commands).take(event.text) and not self.desk.feature(Editing).take(event.text):
            self.desk.feature(Turns).send(
                event.text.removeprefix(PREFIX) if event.text.startswith("//") else event.text
            )
        self.desk.prompt.looked_at()

    @on(ConversationChosen)
    def open_chosen(self, event: ConversationChosen) -> None:
        self.desk.feature(Finding).open(event.conversation_id)
        self.desk.prompt.focus()

    @on(TextArea.Changed, "#prompt")
    @on(TextArea.SelectionChanged, "#prompt")
    def note_typing(self) -> None:
        self.desk.prompt.leave_chip()
        self.desk.feature(Completion).on_typed()
        self.desk.feature(Drafts).on_typed()
        self.desk.feature(Drafting).on_typed()

    @on(AttachmentAdded)
    def count_attachment(self, event: AttachmentAdded) -> None:
        self.desk.feature(Drafting).on_attached(event.number, event.sent)

    @on(SuggestionKey)
    def hand_on_key(self, event: SuggestionKey) -> None:
        self.desk.feature(Completion).on_key(event.key)

    @on(SuggestionTaken)
    def complete(self, event: SuggestionTaken) -> None:
        self.desk.feature(Completion).on_taken(event.text)

    @on(LinesBelow)
    def show_lines_below(self, event: LinesBelow) -> None:
        below = self.query_one("#below", Static)
        below.display = event.count > 0
        below.update(words.lines_below(event.count))
