"""Importance files that the real llama-imatrix writes are read, and fit the model they were made of.

QLOCAL_LLAMA_BIN names the folder of a llama.cpp build with llama-imatrix (`docs/architecture.md`).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from qlocal.formats.imatrix_file import ImatrixFile, read_imatrix
from quantize.calibration.importance import Importance
from quantize.options import Options
from quantize.recipe import make_recipe
from quantize.source import open_source
from tests.real_models import real_model

pytestmark = pytest.mark.real

CHUNKS, LENGTH = 3, 128


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[ImatrixFile, ImatrixFile]:
    """The file of smollm2-135m in the binary and in the GGUF format."""
    program = Path(os.environ.get("QLOCAL_LLAMA_BIN", "/nonexistent")) / "llama-imatrix"
    model = real_model("smollm2-135m.gguf")
    if not program.exists():
        pytest.skip("needs QLOCAL_LLAMA_BIN with llama-imatrix")
    folder = tmp_path_factory.mktemp("imatrix")
    text = folder / "text.txt"
    text.write_text((shared_data / "text" / "eval-wiki.txt").read_text(encoding="utf-8")[:6000])
    for form in ("dat", "gguf"):
        command = [program, "-m", model, "-f", text, "-o", folder / f"m.{form}", "--output-format", form, "--no-ppl"]
        size = ["-c", LENGTH, "-b", LENGTH, "--chunks", CHUNKS, "-t", 1, "-ngl", 0]
        subprocess.run([str(part) for part in (*command, *size)], check=True, capture_output=True, timeout=600)
    return read_imatrix(folder / "m.dat"), read_imatrix(folder / "m.gguf")


def test_both_formats_of_the_peer_say_the_same(made: tuple[ImatrixFile, ImatrixFile]) -> None:
    binary, gguf = made
    assert set(binary.entries) == set(gguf.entries) and len(gguf.entries) == 7 * 30
    assert binary.chunks == gguf.chunks == CHUNKS
    for name, entry in gguf.entries.items():
        torch.testing.assert_close(
            torch.tensor(binary.entries[name].values), torch.tensor(entry.values), rtol=1e-5, atol=1e-12
        )
        assert not entry.unseen and max(entry.values) > 0


def test_the_peers_file_fits_the_source_it_was_made_of(made: tuple[ImatrixFile, ImatrixFile]) -> None:
    source = open_source(real_model("smollm2-135m"))
    recipe = make_recipe(source.architecture, source.config, Options("m", Path("m.gguf"), ("gguf",)), "m")
    for file in made:
        importance = Importance(file.path, recipe)
        specs = list(source.architecture.layer_tensors(source.config, 0))
        assert set(importance.of(specs)) == {spec.name for spec in specs if len(spec.shape) == 2}
        assert any("token_embd.weight" in note for note in importance.notes)  # a tied head, which the peer skips
