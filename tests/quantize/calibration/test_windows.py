from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from qlocal.errors import TemplateLimitError
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.tokenizer.tokenizer import Tokenizer
from quantize.calibration.windows import make_windows
from quantize.options import Calibration
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("m") / "m", "qwen2")
    with Guard() as guard:
        yield Tokenizer.load(open_checkpoint(folder).tokenizer(), guard)


def test_raw_windows_are_the_first_consecutive_ones(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 50
    (tmp_path / "a.txt").write_text(text)
    calibration = Calibration((tmp_path / "a.txt",), raw=True, num_samples=3, seq_len=32)
    windows = make_windows(calibration, tokenizer, 512, 320)
    peer: FastTokenizer = tiny.tiny_tokenizer()
    assert windows.ids.flatten().tolist() == peer.encode(text).ids[: 3 * 32]
    assert windows.notes == ()


def test_shipped_windows_are_always_the_same(tokenizer: Tokenizer) -> None:
    calibration = Calibration(num_samples=10, seq_len=64)
    first, second = (make_windows(calibration, tokenizer, 512, 320) for _ in range(2))
    assert first.ids.shape == (10, 64)
    assert first.sha256 == second.sha256
    assert first.sha256 != make_windows(Calibration(num_samples=9, seq_len=64), tokenizer, 512, 320).sha256


def test_conversations_go_through_the_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "The dog said why not"}]}')
    windows = make_windows(Calibration((tmp_path / "a.jsonl",), seq_len=16), tokenizer, 512, 320)
    start = tiny.tiny_tokenizer().token_to_id("<|im_start|>")
    assert windows.ids[0, 0] == start


def test_a_template_that_does_not_end_is_an_error_and_not_one_that_takes_no_conversations(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "The dog said why not"}]}')
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    data = replace(open_checkpoint(tiny.write_checkpoint(tmp_path / "m", "qwen2")).tokenizer(), chat_template=endless)
    with Guard() as guard, pytest.raises(TemplateLimitError):
        tokenizer = Tokenizer.load(data, guard)
        make_windows(Calibration((tmp_path / "a.jsonl",), seq_len=16), tokenizer, 512, 320)


def test_shortened_windows_and_short_texts_are_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    windows = make_windows(Calibration((tmp_path / "a.txt",), num_samples=100, seq_len=4096), tokenizer, 64, 320)
    assert windows.ids.shape[1] == 64
    assert any("no more positions" in note for note in windows.notes)
    assert any("of 100 windows" in note for note in windows.notes)
