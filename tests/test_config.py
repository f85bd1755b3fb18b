from __future__ import annotations

from pathlib import Path

import pytest

from qlocal.config import device_list, load_settings
from qlocal.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HOME", "RUNTIME", "DEVICES", "MAX_CONTEXT", "THREADS", "IDLE_EXIT_S", "HUB_ENDPOINT"):
        monkeypatch.delenv(f"QLOCAL_{name}", raising=False)
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path))
    return tmp_path


def test_flag_wins_over_environment_over_file_over_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().threads, load_settings().sources["threads"]) == (None, "default")
    (folder / "config.toml").write_text('threads = 2\ndevices = ["cpu", "cuda:1"]\n')
    assert (load_settings().threads, load_settings().sources["threads"]) == (2, "config.toml")
    assert load_settings().devices == ("cpu", "cuda:1")
    monkeypatch.setenv("QLOCAL_THREADS", "3")
    assert (load_settings().threads, load_settings().sources["threads"]) == (3, "environment")
    assert load_settings({"threads": 4}).threads == 4
    assert load_settings({"threads": None}).threads == 3


def test_own_model_folder_comes_with_an_own_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path / "models"))
    settings = load_settings()
    assert settings.home == tmp_path / "models" and settings.runtime == tmp_path / "models" / "run"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("threads = 0", "config.toml: threads is 0"),
        ("threads = true", "threads is True"),
        ('threads = "x"', "threads is 'x'"),
        ('devices = "tpu"', "'tpu' is no device"),
        ("home = 3", "home is 3"),
        ("idle_exit_s = -1", "idle_exit_s is -1"),
        ("colour = 1", "unknown key 'colour'"),
        ("threads = ", "not readable as TOML"),
    ],
)
def test_wrong_file_is_refused_with_file_key_and_value(folder: Path, text: str, words: str) -> None:
    (folder / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_settings()


def test_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLOCAL_MAX_CONTEXT", "many")
    with pytest.raises(ConfigError, match="QLOCAL_MAX_CONTEXT is 'many'"):
        load_settings()


def test_device_lists() -> None:
    assert device_list("cuda:0, cpu") == ("cuda:0", "cpu")
    for wrong in ("", "cuda", "cuda:", "cuda:x", "gpu", "cpu,"):
        with pytest.raises(ValueError, match="no device"):
            device_list(wrong)
