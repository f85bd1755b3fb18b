from pathlib import Path

import pytest

from qlocal.errors import UsageError
from qlocal.formats.checkpoint import open_checkpoint
from quantize.calibration.documents import load_documents
from quantize.gate.texts import HELD_OUT, Reading, read_material
from tests import tiny


def held_out_pieces() -> list[str]:
    documents = load_documents(tuple(p for p in HELD_OUT.iterdir() if p.name != "README.md"))
    return [d.text or "" for d in documents] + [m["content"] for d in documents for m in d.messages or []]


def test_no_held_out_text_is_calibration_text() -> None:
    calibration = load_documents(())
    known = {d.text for d in calibration} | {m["content"] for d in calibration for m in d.messages or []}
    everything = "\n".join(text for text in known if text)
    assert len(held_out_pieces()) > 40
    assert [piece for piece in held_out_pieces() if piece and piece.strip() in everything] == []


def test_every_end_of_a_turn_is_a_stop_token_after_an_answer(tmp_path: Path) -> None:
    source = open_checkpoint(tiny.write_checkpoint(tmp_path / "m"))
    material = read_material(source, Reading())
    assert len(material.ends) > 10
    assert all(material.chunks[chunk][place] in material.stop_ids for chunk, place in material.ends)
    assert len({len(material.chunks[chunk]) for chunk, _ in material.ends}) > 1  # conversations, not windows


def test_windows_are_no_longer_than_the_model_reads(tmp_path: Path) -> None:
    source = open_checkpoint(tiny.write_checkpoint(tmp_path / "m", "qwen2", {"max_position_embeddings": 64}))
    assert {len(chunk) for chunk in read_material(source, Reading()).chunks[:8]} == {64}


def test_model_without_a_template_is_held_to_the_texts_alone(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}")
    material = read_material(open_checkpoint(folder), Reading())
    assert material.ends == [] and len(material.chunks) == 8


def test_sizes_that_say_nothing_are_refused(tmp_path: Path) -> None:
    source = open_checkpoint(tiny.write_checkpoint(tmp_path / "m"))
    with pytest.raises(UsageError, match="--chunks 0 --length 256"):
        read_material(source, Reading(num_chunks=0))
