"""Chat templates that nobody knows are new once; `test_real_engine.py` sees a server say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlocal.schema import EngineState, Status, Template
from qlocal.server.seen_templates import SeenTemplates

UNKNOWN = Template("a" * 64)
KNOWN = Template("b" * 64, known_as="Qwen2 Instruct")


def test_an_unknown_template_is_new_once(tmp_path: Path) -> None:
    path = tmp_path / "home" / "seen_templates"
    assert SeenTemplates(path).look_at(UNKNOWN).is_new
    assert not SeenTemplates(path).look_at(UNKNOWN).is_new
    assert SeenTemplates(path).look_at(Template("c" * 64)).is_new


def test_a_known_template_is_never_new(tmp_path: Path) -> None:
    path = tmp_path / "seen_templates"
    assert SeenTemplates(path).look_at(KNOWN) == KNOWN
    assert not path.exists()


def test_what_cannot_be_remembered_is_warned_of_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    templates = SeenTemplates(tmp_path)  # a folder
    assert templates.look_at(UNKNOWN).is_new and templates.look_at(UNKNOWN).is_new
    assert "cannot be remembered" in caplog.text


def test_a_status_keeps_its_template() -> None:
    status = Status(EngineState.READY, "1", 1, template=Template("a" * 64, is_new=True))
    assert Status.from_json(status.to_json()) == status
