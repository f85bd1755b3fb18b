from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlocal import hub, transfer
from qlocal.config import Settings
from qlocal.errors import FormatError, PlanError, ServerError, UsageError
from tests.fake_hub import FakeHub, running, sha256

FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4000,
    "README.md": b"# not needed",
    "modeling.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same again",
    "original/params.json": b"{}",
}
WANTED = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with running(FakeHub(dict(FILES))) as found:
        yield found


@pytest.fixture
def settings(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(transfer, "WAIT_S", 0.0)
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path / "config"))
    return Settings(home=tmp_path / "models", runtime=tmp_path / "run", sessions=tmp_path / "kv", hub_endpoint=fake.url)


def test_only_weights_tokenizer_and_config_arrive_whole(settings: Settings) -> None:
    seen: list[tuple[str, int, int]] = []
    path = hub.pull("maker/model", settings=settings, on_file=lambda *args: seen.append(args))
    assert path == settings.home / "model"
    assert {p.name for p in path.iterdir()} == WANTED
    assert all((path / name).read_bytes() == FILES[name] for name in WANTED)
    assert {name for name, _, _ in seen} == WANTED and seen[0][1] == 0
    assert [p.name for p in settings.home.iterdir()] == ["model"]


def test_broken_transfer_is_taken_up_again(fake: FakeHub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1 << 16)
    fake.cut_after["model.safetensors"] = 500_000
    path = hub.pull("maker/model", settings=settings)
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    (resumed,) = fake.ranges
    assert int(resumed.removeprefix("bytes=").partition("-")[0]) > 400_000


def test_next_attempt_continues_what_a_killed_one_left(fake: FakeHub, settings: Settings) -> None:
    content = FILES["model.safetensors"]
    staging = settings.home / "model.partial"
    staging.mkdir(parents=True)
    (staging / f"model.safetensors.{sha256(content)[:16]}.incomplete").write_bytes(content[:700_000])
    (staging / "model.safetensors.0000000000000000.incomplete").write_bytes(b"of another version")
    path = hub.pull("maker/model", settings=settings)
    assert fake.ranges == ["bytes=700000-"]
    assert {p.name for p in path.iterdir()} == WANTED
    assert (path / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "SHA-256"), ("config.json", "git SHA-1")])
def test_wrong_bytes_are_refused_removed_and_fetched_again(
    fake: FakeHub, settings: Settings, name: str, kind: str
) -> None:
    fake.wrong_bytes.add(name)
    with pytest.raises(FormatError, match=f"{name}: {kind} is"):
        hub.pull("maker/model", settings=settings)
    assert not (settings.home / "model").exists()
    assert not (settings.home / "model.partial" / name).exists()
    fake.wrong_bytes.clear()
    assert hub.pull("maker/model", settings=settings).is_dir()


def test_short_file_is_refused(fake: FakeHub, settings: Settings) -> None:
    fake.listed_sizes["model.safetensors"] = 2_000_000
    with pytest.raises((FormatError, ServerError, UsageError), match=r"model\.safetensors|maker/model"):
        hub.pull("maker/model", settings=settings)
    assert not (settings.home / "model").exists()


def test_files_that_are_there_are_not_fetched_twice(fake: FakeHub, settings: Settings) -> None:
    fake.wrong_bytes.add("model.safetensors")
    with pytest.raises(FormatError):
        hub.pull("maker/model", settings=settings)
    fake.wrong_bytes.clear()
    fake.requests.clear()
    hub.pull("maker/model", settings=settings)
    fetched = {path.rpartition("/")[2] for method, path in fake.requests if method == "GET" and "resolve" in path}
    assert fetched == {"model.safetensors"}


def test_too_little_space_is_noticed_before_anything_is_fetched(
    fake: FakeHub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(settings.home.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PlanError, match=r"needs .* more bytes in .*, 1,000 are free"):
        hub.pull("maker/model", settings=settings)
    assert not any("resolve" in path for _, path in fake.requests)


def test_full_disk_is_one_sentence(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.Transfer, "_append", full)
    with pytest.raises(PlanError, match="is full") as caught:
        hub.pull("maker/model", settings=settings)
    assert "\n" not in str(caught.value)


def test_several_gguf_files_ask_which_one(fake: FakeHub, settings: Settings) -> None:
    fake.files = {"a-q4_0.gguf": b"GGUF1", "a-q8_0-00001-of-00002.gguf": b"x", "a-q8_0-00002-of-00002.gguf": b"y"}
    with pytest.raises(UsageError, match=r"2 GGUF files: a-q4_0\.gguf, a-q8_0\.gguf. Choose one with --include"):
        hub.pull("maker/model", settings=settings)
    path = hub.pull("maker/model", include="*q8_0*", settings=settings)
    assert sorted(p.name for p in path.iterdir()) == ["a-q8_0-00001-of-00002.gguf", "a-q8_0-00002-of-00002.gguf"]


@pytest.mark.parametrize("include", [None, "*.gguf"])
def test_repository_without_weights_is_refused(fake: FakeHub, settings: Settings, include: str | None) -> None:
    fake.files = {"pytorch_model.bin": b"pickle", "config.json": b"{}"}
    with pytest.raises(UsageError, match="no safetensors or GGUF"):
        hub.pull("maker/model", include=include, settings=settings)


def test_what_is_there_already_is_left_alone(settings: Settings) -> None:
    hub.pull("maker/model", settings=settings)
    with pytest.raises(UsageError, match="there already"):
        hub.pull("maker/model", settings=settings)


@pytest.mark.parametrize("status", [404, 401, 500])
def test_hub_that_refuses_is_one_sentence(fake: FakeHub, settings: Settings, status: int) -> None:
    fake.status = status
    with pytest.raises(ServerError, match="maker/model") as caught:
        hub.pull("maker/model", settings=settings)
    assert "\n" not in str(caught.value)


def test_hub_that_is_not_there_is_one_sentence(settings: Settings) -> None:
    with pytest.raises(ServerError, match="could not be fetched"):
        hub.pull("maker/model", settings=replace(settings, hub_endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize("endpoint", ["http://example.com", "ftp://x", "file:///etc"])
def test_only_https_hubs_are_asked(settings: Settings, endpoint: str) -> None:
    with pytest.raises(UsageError, match="expected an https address"):
        hub.pull("maker/model", settings=replace(settings, hub_endpoint=endpoint))


def test_name_that_is_neither_known_nor_a_repository_is_refused(settings: Settings) -> None:
    with pytest.raises(UsageError, match="not in the catalogue"):
        hub.pull("../../etc", settings=settings)


def test_removing_stays_inside_the_model_folder(settings: Settings) -> None:
    hub.pull("maker/model", settings=settings)
    (settings.home.parent / "precious").mkdir()
    for name in ("../precious", "/etc", ".", "", "nothing"):
        with pytest.raises(UsageError, match="is not in"):
            hub.remove(name, settings)
    path, freed = hub.remove("model", settings)
    assert not path.exists() and freed == sum(len(FILES[name]) for name in WANTED)
