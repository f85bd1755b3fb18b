"""What is kept by name: prompts with variables, system messages, samplings; each a file that an editor may change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlocal.chat.features import ACTIONS
from qlocal.chat.library import PROMPTS, SAMPLINGS, SYSTEMS, fill, variables
from qlocal.chat.preferences import Preferences, load_preferences
from qlocal.chat.sampling import parse_fields, parse_sampling, written
from qlocal.chat.screens.form import Form
from qlocal.errors import QLocalError, UsageError
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_commands import suggestions
from tests.chat.test_room import asked, offers, talk


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def link() -> ScriptedLink:
    return ScriptedLink([answer_of("Yes.")])


def shows_form(chat: Chat) -> bool:
    return isinstance(chat.app.screen, Form) and bool(chat.app.screen.query("Field"))


def test_variables_are_found_once_and_filled_once() -> None:
    text = "{{a}} {{ b-c }} {{a}} {{语言}} {not} {{}} {{1}}"
    assert variables(text) == ["a", "b-c", "语言"]
    assert fill(text, {"a": "{{ b-c }}", "b-c": "2", "语言": "中文"}) == "{{ b-c }} 2 {{ b-c }} 中文 {not} {{}} {{1}}"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "two words", "a\nb"])
def test_a_name_stays_in_its_folder(name: str) -> None:
    for use in (PROMPTS.read, lambda one: PROMPTS.write(one, "x")):
        with pytest.raises(UsageError, match="is no name"):
            use(name)


def test_a_file_takes_the_place_of_what_is_built_in(folder: Path) -> None:
    assert "{{draft}}" in PROMPTS.read("explain") and SAMPLINGS.read("recommended") == ""
    assert PROMPTS.write("explain", "Mine: {{draft}}\n") == folder / "prompts" / "explain.md"
    assert PROMPTS.read("explain") == "Mine: {{draft}}"
    assert (folder / "prompts" / "explain.md").read_text() == "Mine: {{draft}}\n"
    assert [path.name for path in (folder / "prompts").iterdir()] == ["explain.md"]


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="no 'explan' among the prompts") as caught:
        PROMPTS.read("explan")
    assert "explain" in str(caught.value.hint)
    (folder / "prompts").mkdir(parents=True)
    (folder / "prompts" / "raw.md").write_bytes(b"\xff\xfe")
    (folder / "prompts" / "large.md").write_text("x" * ((1 << 20) + 1))
    for name, why in (("raw", "cannot be read"), ("large", "1,048,576")):
        with pytest.raises(UsageError, match=why):
            PROMPTS.read(name)


def test_a_sampling_is_written_as_it_is_read() -> None:
    fields = {"temperature": 0.2, "top_k": 40, "seed": 7}
    assert parse_fields(written(fields)) == fields
    SAMPLINGS.write("mine", written(fields))
    assert parse_sampling("mine") == fields and parse_sampling("exact") == {"temperature": 0.0}
    SAMPLINGS.write("wrong", "temperature=99")
    with pytest.raises(QLocalError, match="temperature is '99'"):
        parse_sampling("wrong")


def test_a_prompt_is_chosen_filled_in_and_left_in_the_editor(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press(*"Guten", "space", *"Tag")
        await chat.pilot.press("alt+p")
        await chat.until(lambda: asked(chat))
        await chat.pilot.press(*"transl", "enter")
        await chat.until(lambda: shows_form(chat))
        # The draft is in its field already; the first field that is empty has the cursor.
        await chat.pilot.press(*"Eng", "ctrl+j", *"lish", "enter")
        await chat.until(lambda: not shows_form(chat))
        assert chat.prompt.text.startswith("Translate this into Eng\nlish.") and chat.prompt.text.endswith("Guten Tag")
        assert chat.link.requests == []

    run_chat(tmp_path, link(), use)


def test_leaving_the_form_leaves_the_draft(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("x", "alt+p")
        await chat.until(lambda: asked(chat))
        await chat.pilot.press(*"rewr", "enter")
        await chat.until(lambda: shows_form(chat))
        await chat.pilot.press("escape")
        await chat.until(lambda: not shows_form(chat))
        assert chat.prompt.text == "x"

    run_chat(tmp_path, link(), use)


def test_a_prompt_without_variables_goes_to_the_cursor(tmp_path: Path) -> None:
    PROMPTS.write("polite", "Please. ")

    async def use(chat: Chat) -> None:
        await chat.say("/prompt polite")
        await chat.until(lambda: chat.prompt.text == "Please. ")
        await chat.say("/prompt poltie")
        await chat.until(lambda: "no 'poltie' among the prompts" in chat.notice)

    run_chat(tmp_path, link(), use)


def test_a_prompt_is_made_of_the_draft_and_never_overwrites_one_unasked(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        chat.app.chat.do("save_prompt")
        await chat.until(lambda: "nothing to keep" in chat.notice)
        for draft, answer, kept in (
            ("one", None, "one"),
            ("two", "escape", "one"),
            ("three", "enter", "one"),
            ("four", "down enter", "four"),
        ):
            chat.prompt.text = draft
            chat.app.chat.do("save_prompt")
            await chat.until(lambda: shows_form(chat))
            await chat.pilot.press(*"mine", "enter")
            if answer is not None:
                await chat.until(lambda: asked(chat))
                await chat.pilot.press(*answer.split())
            await chat.until(lambda: chat.app.screen is chat.app.chat)
            await chat.until(lambda: not any(worker.group == "choose" for worker in chat.app.workers))
            assert chat.prompt.text == draft and PROMPTS.read("mine") == kept

    run_chat(tmp_path, link(), use)


def test_the_last_message_becomes_a_prompt_by_a_command(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await talk(chat, "What is {{it}}?")
        await chat.say("/save-prompt what")
        await chat.until(lambda: "what.md" in chat.notice.replace("\n", ""))
        assert PROMPTS.read("what") == "What is {{it}}?"

    run_chat(tmp_path, link(), use)


def test_a_prompt_is_edited_in_the_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "by hand\\n" > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))

    async def use(chat: Chat) -> None:
        @contextlib.contextmanager
        def suspend() -> Iterator[None]:
            yield

        monkeypatch.setattr(chat.app, "suspend", suspend)
        for name in ("new", "explain"):
            await chat.say(f"/edit-prompt {name}")
            await chat.until(lambda: chat.notice.replace("\n", "").endswith(f"{name}.md."))  # noqa: B023
            assert PROMPTS.read(name) == "by hand"

    run_chat(tmp_path, link(), use, size=(160, 40))


def test_system_and_sampling_are_kept_by_name_and_chosen(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        session = chat.app.chat.desk.session
        await chat.say("/save-system")
        await chat.until(lambda: "Write the name" in chat.notice)
        await chat.say("/system Speak Latin.")
        await chat.until(lambda: session.system == "Speak Latin.")
        await chat.say("/save-system latin")
        await chat.until(lambda: SYSTEMS.has("latin"))
        await chat.say("/sampling top_k=5")
        await chat.until(lambda: session.sampling == {"top_k": 5})
        await chat.say("/save-sampling default")
        await chat.until(lambda: SAMPLINGS.has("default"))
        await chat.say("/sampling")
        await chat.until(lambda: asked(chat))
        assert [offer.split()[0] for offer in offers(chat)] == ["●", "default", "exact", "lively", "recommended"]
        await chat.pilot.press("down", "enter")
        await chat.until(lambda: session.sampling == {"temperature": 0.0})
        await chat.pilot.press("ctrl+n")
        assert session.system is None and session.sampling == {"top_k": 5}, "default is that of new conversations"
        await chat.say("/system latin")
        await chat.until(lambda: session.system == "Speak Latin.")
        await chat.say("/system")
        await chat.until(lambda: asked(chat))
        assert offers(chat)[0].startswith("● Speak Latin.") and offers(chat)[-1] == "No system message"
        await chat.pilot.press("up", "enter")
        await chat.until(lambda: session.system is None)

    run_chat(tmp_path, link(), use)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("/system breif", "There are: brief, teacher."),
        ("/system latin", "There are: brief, teacher."),
        ("/sampling livly", "There are: exact, lively, recommended."),
        ("/prompt explan", "There are: explain, review, rewrite, translate."),
    ],
)
def test_a_mistyped_name_is_no_message_and_the_names_are_listed(tmp_path: Path, typed: str, named: str) -> None:
    async def use(chat: Chat) -> None:
        await chat.say(typed)
        await chat.until(lambda: "there is no" in chat.notice)
        assert named in chat.notice
        session = chat.app.chat.desk.session
        assert session.system is None and session.sampling == {} and chat.link.requests == []

    run_chat(tmp_path, link(), use, size=(160, 40))


@pytest.mark.parametrize("text", ["Latin.", "用中文回答", "Speak Latin"])
def test_a_short_system_message_is_no_mistyped_name(tmp_path: Path, text: str) -> None:
    async def use(chat: Chat) -> None:
        await chat.say(f"/system {text}")
        await chat.until(lambda: chat.app.chat.desk.session.system == text)

    run_chat(tmp_path, link(), use)


def test_names_are_completed_behind_their_commands(tmp_path: Path) -> None:
    PROMPTS.write("exam", "Ask me.")

    async def use(chat: Chat) -> None:
        await chat.pilot.press("slash", *"prompt", "space")
        assert suggestions(chat) == ["exam", "explain", "review", "rewrite", "translate"]
        await chat.pilot.press(*"ex", "down", "tab")
        assert chat.prompt.text == "/prompt explain" and suggestions(chat) == []
        await chat.pilot.press("ctrl+u", "slash", *"system", "space", "b", "enter")
        assert chat.prompt.text == "/system brief"
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.app.chat.desk.session.system == SYSTEMS.read("brief"))
        # A command that is whole asks by itself, though names are shown: none of them is marked.
        await chat.pilot.press("slash", *"sampling", "space")
        assert suggestions(chat) == ["exact", "lively", "recommended"]
        await chat.pilot.press("enter")
        await chat.until(lambda: asked(chat))

    run_chat(tmp_path, link(), use)


def test_what_is_called_default_begins_every_session(tmp_path: Path) -> None:
    SYSTEMS.write("default", "Be brief.")
    SAMPLINGS.write("default", "temperature=0.5")
    found = load_preferences(ACTIONS)
    assert (found.system, found.sampling) == ("Be brief.", {"temperature": 0.5})

    async def use(chat: Chat) -> None:
        await talk(chat, "one")
        assert chat.link.requests[0][0] == {"role": "system", "content": "Be brief."}
        assert chat.link.options[0]["temperature"] == 0.5

    run_chat(tmp_path, link(), use, preferences=Preferences("en", system=found.system, sampling=found.sampling))
    SAMPLINGS.write("default", "temperatur=0.5")
    with pytest.raises(UsageError, match="temperatur"):
        load_preferences(ACTIONS)
