"""Nothing that a stranger wrote reaches the terminal as a control sequence, whichever command meets it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from qlocal.cli import main as qlocal
from quantize.cli import main as quantize
from tests import tiny
from tests.formats.gguf_files import file_bytes, info, key, string

SEQUENCES = [
    "\x1b]0;title\x07",
    "\x1b]2;title\x1b\\",
    "\x1b]52;c;aGk=\x07",
    "\x1b]8;;https://x\x07y",
    "\x1b[2J",
    "\x1b[H",
    "\x1b[31m",
    "\x1b[1A\x1b[2K",
    "\x1b[?1049h",
    "\x1b[?25l",
    "\x1b[6n",
    "\x1b[c",
    "\x1b[>c",
    "\x1bc",
    "\x1b(0",
    "\x1b#8",
    "\x1bP$q\x1b\\",
    "\x1b_x\x1b\\",
    "\x1b^x\x1b\\",
    "\x1bX\x1b\\",
    "\x9b2J",
    "\x9d0;x\x9c",
    "\x90q\x9c",
    "\x8d",
    "\x85",
    "\x07",
    "\x08\x08\x08",
    "\r",
    "\x0b",
    "\x0c",
    "\x0e\x0f",
    "\x7f",
    "\x00",
    "\u202e",
    "\u202d\u202c",
    "\u2066\u2069",
    "\u2068",
    "\U000e0041\U000e007f",
    "\x1b]1337;File=:\x07",
    "\x1b]4;1;?\x07",
    "\x1b]777;notify;a;b\x07",
]
assert len(SEQUENCES) >= 40
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f\ud800-\udfff]")


def in_config(folder: Path, text: str) -> list[str]:
    """Put `text` into fields that are quoted when they are refused."""
    raw = tiny.raw_config("qwen2", {"model_type": text})
    (folder / "config.json").write_text(json.dumps(raw))
    return [str(folder)]


def in_quantization(folder: Path, text: str) -> list[str]:
    (folder / "config.json").write_text(
        json.dumps(tiny.raw_config("qwen2", {"quantization_config": {"quant_method": text}}))
    )
    return [str(folder)]


def in_tensor_name(folder: Path, text: str) -> list[str]:
    import torch

    save_file({f"a{text}": torch.zeros(2)}, folder / "model.safetensors")
    return [str(folder)]


def in_index(folder: Path, text: str) -> list[str]:
    index = {"weight_map": {f"a{text}": f"{text}.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [str(folder)]


def in_gguf(folder: Path, text: str) -> list[str]:
    keys = [key("general.architecture", 8, string(text))]
    (folder / "x.gguf").write_bytes(file_bytes(keys, [info("token_embd.weight", [8])], bytes(32)))
    return [str(folder / "x.gguf")]


def in_gguf_key(folder: Path, text: str) -> list[str]:
    (folder / "x.gguf").write_bytes(file_bytes([key(f"a{text}", 4, struct.pack("<I", 1))]))
    return [str(folder / "x.gguf")]


def in_file_name(folder: Path, text: str) -> list[str]:
    path = folder / f"x{text.replace('/', '').replace(chr(0), '')}.gguf"
    path.write_bytes(b"GGUF")
    return [str(path)]


def in_folder_name(folder: Path, text: str) -> list[str]:
    path = folder / f"x{text.replace('/', '').replace(chr(0), '')}"
    path.mkdir()
    return [str(path)]


def in_the_argument(folder: Path, text: str) -> list[str]:
    del folder
    return [f"nobody{text.replace(chr(0), '')}"]


PLACES: list[Callable[[Path, str], list[str]]] = [
    in_config, in_quantization, in_tensor_name, in_index, in_gguf, in_gguf_key, in_file_name, in_folder_name,
    in_the_argument,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_no_control_sequence_of_a_hostile_checkpoint_reaches_the_terminal(
    place: Callable[[Path, str], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path / "home"))
    for index, text in enumerate(SEQUENCES):
        folder = tiny.write_checkpoint(tmp_path / str(index)) if index == 0 else tmp_path / str(index)
        if index:
            folder.mkdir()
            (folder / "config.json").write_bytes((tmp_path / "0" / "original.json").read_bytes())
        else:
            (folder / "original.json").write_bytes((folder / "config.json").read_bytes())
        arguments = place(folder, text)
        commands = {
            "qlocal plan": lambda given: qlocal(["plan", *given]),
            "qlocal eval": lambda given: qlocal(["eval", *given]),
            "qlocal models show": lambda given: qlocal(["models", "show", *given]),
            "qlocal pull": lambda given: qlocal(["pull", *given]),
            "quantize": lambda given: quantize([*given, "--format", "awq", "--out", str(tmp_path / "out")]),
            "quantize --dry-run": lambda given: quantize([*given, "--format", "awq", "--out", "out", "--dry-run"]),
            "quantize verify": lambda given: quantize(["verify", *given, "--source", *given]),
        }
        for name, command in commands.items():
            code = command(arguments)
            shown = capsys.readouterr()
            assert code == 2, (name, shown.err)
            assert not FORBIDDEN.search(shown.err + shown.out), (name, shown.err)
            assert "Traceback" not in shown.err and len(shown.err.strip().splitlines()) == 1, (name, shown.err)
