"""Slash commands, the palette, help, and keys of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.events import Key
from textual.widgets import Static

from qlocal.chat.features import ACTIONS
from qlocal.chat.preferences import Preferences, load_preferences
from qlocal.chat.screens.help import HelpScreen
from qlocal.chat.screens.picker import Picker
from qlocal.chat.widgets.suggestions import Suggestions
from qlocal.errors import ConfigError
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of


def suggestions(chat: Chat) -> list[str]:
    shown = chat.app.chat.query_one(Suggestions)
    return [str(shown.get_option_at_index(i).prompt).split()[0] for i in range(shown.option_count)]


def test_every_action_has_a_name_a_command_and_a_sentence_of_its_own() -> None:
    assert len({action.name for action in ACTIONS}) == len(ACTIONS) == len({action.slash for action in ACTIONS})
    keys = [key for action in ACTIONS for key in filter(None, action.keys.split(","))]
    assert len(keys) == len(set(keys)), "a key is one action's"
    assert all(action.help and action.label for action in ACTIONS)


def test_a_slash_command_does_what_the_key_does(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("First.")
        await chat.until_idle()
        await chat.say("/regenerate")
        await chat.until_shown("Second.")
        assert chat.prompt.text == "" and len(chat.link.requests) == 2
        await chat.until_idle()
        await chat.say("/new_conversation")
        assert chat.app.chat.query_one("#welcome", Static).display

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)


def test_an_unknown_command_is_said_and_stays_in_the_editor(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("/regenrate")
        assert "There is no command /regenrate. Did you mean 'regenerate'?" in chat.notice
        assert chat.prompt.text == "/regenrate" and chat.link.requests == []
        await chat.say("/quit now")
        assert "/quit takes no text behind it." in chat.notice

    run_chat(tmp_path, ScriptedLink([]), use)


@pytest.mark.parametrize(("typed", "sent"), [("//quit", "/quit"), ("/usr/bin/env", "/usr/bin/env"), ("/a\nb", "/a\nb")])
def test_messages_may_begin_with_a_slash(tmp_path: Path, typed: str, sent: str) -> None:
    async def use(chat: Chat) -> None:
        await chat.say(typed)
        await chat.until_shown("Yes.")
        assert chat.link.requests == [[{"role": "user", "content": sent}]]

    run_chat(tmp_path, ScriptedLink([answer_of("Yes.")]), use)


def test_commands_are_completed_while_they_are_typed(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("slash", *"new-")
        assert suggestions(chat)[:2] == ["/new-from-here", "/new-conversation"]
        await chat.pilot.press("down", "tab")
        assert chat.prompt.text == "/new-conversation"
        assert not chat.app.chat.query_one(Suggestions).display
        await chat.pilot.press("ctrl+u", "slash", *"qu")
        assert suggestions(chat) == ["/quit"]
        await chat.pilot.press("escape")
        assert not chat.app.chat.query_one(Suggestions).display and chat.prompt.text == "/qu"
        await chat.pilot.press("i")
        assert suggestions(chat) == ["/quit"]

    run_chat(tmp_path, ScriptedLink([]), use)


def test_enter_sends_a_whole_command_though_longer_ones_have_its_name_in_them(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("slash", *"system")
        assert suggestions(chat) == ["/system", "/save-system"]
        await chat.pilot.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, Picker))

    run_chat(tmp_path, ScriptedLink([]), use)


def test_enter_in_the_same_instant_as_a_command_sends_it(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("slash", *"hel")
        assert chat.prompt.is_completing
        # Both keys are in the queue before the list hears of the first.
        chat.prompt.post_message(Key("p", "p"))
        chat.prompt.post_message(Key("enter", "\r"))
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        assert chat.prompt.text == ""

    run_chat(tmp_path, ScriptedLink([]), use)


def test_the_palette_has_every_action(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("ctrl+p")
        await chat.until(lambda: isinstance(chat.app.screen, CommandPalette))
        assert {str(c.title) for c in chat.app.get_system_commands(chat.app.screen)} >= {"Again", "Model", "Help"}
        await chat.pilot.press(*"Show all keys")
        await chat.pilot.pause(0.5)
        await chat.pilot.press("escape")

    run_chat(tmp_path, ScriptedLink([]), use)


def test_help_shows_keys_and_commands_as_they_are(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("f1")
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        rows = chat.app.screen.rows
        assert ("ctrl+r", "/regenerate") in [row[:2] for row in rows]
        assert {action.help for action in ACTIONS} <= {row[2] for row in rows}
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)

    run_chat(tmp_path, ScriptedLink([]), use, size=(60, 15))


def test_keys_can_be_changed(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("First.")
        await chat.until_idle()
        await chat.pilot.press("ctrl+r")
        assert len(chat.link.requests) == 1
        await chat.pilot.press("f5")
        await chat.until_shown("Second.")

    link = ScriptedLink([answer_of("First."), answer_of("Second.")])
    run_chat(tmp_path, link, use, preferences=Preferences(keys={"regenerate": "f5"}))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('keys = {regenerat = "f5"}', "there is no action 'regenerat'. Did you mean 'regenerate'?"),
        ('keys = {regenerate = "ctrl+n"}', "ctrl+n is the key of regenerate and of new_conversation"),
        ("keys = {regenerate = 5}", "chat.keys.regenerate is 5"),
        ("keys = 5", "chat.keys is 5"),
        ('language = "fr"', "chat.language is 'fr', expected one of auto, en, zh"),
        ("colour = 1", "unknown key 'chat.colour'"),
    ],
)
def test_mistakes_in_the_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, sentence: str
) -> None:
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path))
    (tmp_path / "config.toml").write_text(f"[chat]\n{table}\n")
    with pytest.raises(ConfigError) as caught:
        load_preferences(ACTIONS)
    assert sentence in " ".join(str(caught.value).split()) and "config.toml" in str(caught.value)


def test_preferences_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path))
    (tmp_path / "config.toml").write_text('threads = 2\n[chat]\nlanguage = "zh"\nkeys = {regenerate = "none"}\n')
    found = load_preferences(ACTIONS)
    assert found.chosen_language == "zh" and found.keys == {"regenerate": ""}


@pytest.mark.parametrize(("locale", "language"), [("zh_CN.UTF-8", "zh"), ("de_DE.UTF-8", "en"), ("", "en")])
def test_the_language_is_that_of_the_locale(monkeypatch: pytest.MonkeyPatch, locale: str, language: str) -> None:
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", locale)
    assert Preferences().chosen_language == language
