"""`qlocal template show`: a template is shown as text, with its hash and whose it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlocal.cli import main
from qlocal.tokenizer.known_templates import KNOWN, known_as, sha256
from tests import tiny
from tests.formats import gguf_files


def with_template(folder: Path, template: str | None) -> Path:
    tiny.write_checkpoint(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_an_unknown_template_is_called_so_and_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{{ messages }}\x1b]52;c;AAAA\x07\u202e{# hidden #}"
    assert main(["template", "show", str(with_template(tmp_path / "m", template))]) == 0
    shown = capsys.readouterr().out
    assert sha256(template) in shown and "unknown: " in shown and "{# hidden #}" in shown
    assert "\x1b" not in shown and "\u202e" not in shown and r"\x1b]52" in shown


def test_a_known_template_has_the_name_of_its_model(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {path.name: known_as(path.read_text()) for path in (shared_data / "templates").glob("*.jinja")}
    assert known["qwen2.5-instruct.jinja"] == "Qwen2.5 Instruct, Qwen2.5-Coder-0.5B"
    assert known["qwen2-instruct.jinja"] == "Qwen2 Instruct" and known["mistral-v1-system.jinja"]
    assert known["llama-3-equivalent.jinja"] is None
    assert all(len(digest) == 64 for digest in KNOWN)


def test_gguf_files_and_folders_show_the_same_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (gguf, *_), _ = gguf_files.write_tiny_gguf(tmp_path / "m.gguf", "qwen2")
    shown = []
    for path in (folder, gguf):
        assert main(["template", "show", str(path), "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0] == shown[1]
    assert shown[0] == {"sha256": sha256(tiny.CHAT_TEMPLATE), "known_as": None, "template": tiny.CHAT_TEMPLATE}


def test_a_model_without_a_template_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", "show", str(with_template(tmp_path / "m", None))]) == 2
    assert "has no chat template" in capsys.readouterr().err
