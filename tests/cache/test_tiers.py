"""Host memory and disk beside the pool: what is kept there, for whom, and what goes when there is no room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlocal.cache import disk_tier
from qlocal.cache.block_file import read_block, read_header
from qlocal.cache.block_manager import BlockManager
from qlocal.cache.block_pool import Content, content_after, root_digest
from qlocal.cache.disk_tier import DiskTier
from qlocal.cache.host_tier import HostTier
from qlocal.cache.tiers import Chain, Tier

BLOCK, SIZE = 4, 5000
MADE_BY = {"weights": "abc"}
ROOT = root_digest(f"model block_size={BLOCK}")


class Storage:
    """Blocks whose every byte is what `write` has put there."""

    def __init__(self, num_blocks: int = 8) -> None:
        self.memory = torch.zeros(num_blocks, 1, SIZE, dtype=torch.uint8)

    block_bytes = SIZE

    def read_block(self, block: int) -> list[Tensor]:
        return [self.memory[block]]

    room_for = read_block

    def write_block(self, block: int, parts: Sequence[Tensor]) -> None:
        self.memory[block] = parts[0]

    def write(self, block: int, value: int) -> None:
        self.memory[block] = value

    def holds(self, block: int) -> int:
        assert self.memory[block].unique().numel() == 1
        return int(self.memory[block, 0, 0])


def disk_of(storage: Storage, folder: Path, quota: int = 1 << 20, made_by: dict[str, str] | None = None) -> DiskTier:
    return DiskTier(folder, made_by or MADE_BY, storage, quota, min_tokens=0)


def content(*token_ids: int, parent: bytes = ROOT) -> Content:
    return content_after(parent, token_ids)


def test_another_start_finds_what_was_kept(tmp_path: Path) -> None:
    storage = Storage()
    storage.write(1, 11)
    disk_of(storage, tmp_path).keep(content(1, 2, 3, 4), 1)
    again, other = disk_of(storage, tmp_path), content(1, 2, 3, 5)
    assert again.holds(content(1, 2, 3, 4)) and not again.holds(other)
    assert again.load(content(1, 2, 3, 4), 2) and storage.holds(2) == 11
    assert not again.load(other, 3) and storage.holds(3) == 0
    assert again.longest(ROOT, [1, 2, 9]) == (content(1, 2, 3, 4), 2)
    assert again.longest(ROOT, [7]) is None and again.longest(b"0" * 16, [1]) is None


def test_a_file_under_another_name_is_refused_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage, mine, theirs = Storage(), content(1, 2, 3, 4), content(5, 6, 7, 8)
    disk_of(storage, tmp_path).keep(theirs, 1)
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(path.name.replace(theirs.digest.hex(), mine.digest.hex())))
    again = disk_of(storage, tmp_path)
    assert not again.load(mine, 2)
    assert "holds another conversation than its name says; its 4 tokens are computed again" in caplog.text
    assert not again.holds(mine) and list(tmp_path.iterdir()) == []


def test_blocks_of_other_weights_are_refused_whatever_they_are_called(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, kept = Storage(), content(1, 2)
    disk_of(storage, tmp_path).keep(kept, 1)
    other = disk_of(storage, tmp_path, made_by={"weights": "other"})
    assert other.longest(ROOT, [1, 2]) is None
    assert "weights 'abc', expected 'other'" in caplog.text


def test_the_quota_holds_and_the_least_recently_used_go(tmp_path: Path) -> None:
    storage, taken = Storage(), []
    disk = disk_of(storage, tmp_path, quota=3 * (SIZE + 4096))
    for index in range(3):
        disk.keep(content(index), 1)
        time.sleep(0.01)
    assert disk.load(content(0), 2)
    disk.keep(content(9), 1)
    taken = [index for index in (0, 1, 2, 9) if disk.holds(content(index))]
    assert taken == [0, 2, 9]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == disk.num_bytes <= 3 * (SIZE + 4096)
    assert not disk.keep_parts(content(10), storage.read_block(1), spare_since=0.0), "nothing may go for it"


@pytest.mark.parametrize("jump_s", [-86400.0, 86400.0])
def test_a_clock_that_jumps_keeps_the_order_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    storage, quota = Storage(), 3 * (SIZE + 4096)
    disk, before = disk_of(storage, tmp_path, quota), time.time()
    for index in range(3):
        disk.keep(content(index), 1)
    since = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: before + jump_s)
    assert disk.load(content(0), 2)
    assert disk.keep_parts(content(9), storage.read_block(1), spare_since=since), "what was used before may go"
    assert [index for index in (0, 1, 2, 9) if disk.holds(content(index))] == [0, 2, 9]
    again = disk_of(storage, tmp_path, quota)
    again.keep(content(10), 1)
    assert again.holds(content(10)), "files of tomorrow do not stand in the way"
    since = time.monotonic()
    assert again.keep_parts(content(11), storage.read_block(1), spare_since=since)


def test_a_last_block_that_has_grown_replaces_what_it_was(tmp_path: Path) -> None:
    disk = disk_of(Storage(), tmp_path)
    for tokens in ((1, 2), (1, 9), (1, 2, 3)):
        disk.keep(content(*tokens), 1)
    assert not disk.holds(content(1, 2))
    assert disk.holds(content(1, 9)) and disk.holds(content(1, 2, 3))


def test_a_writer_that_is_killed_leaves_the_old_file_and_no_new_one(tmp_path: Path) -> None:
    """A process keeps writing blocks until it is killed, again and again: what is there is always whole."""
    storage = Storage()
    disk_of(storage, tmp_path).keep(content(1, 2, 3, 4), 1)
    script = f"""
import sys, torch
from pathlib import Path
from qlocal.cache.block_file import write_block
part = torch.full((1 << 22,), 7, dtype=torch.uint8)
print("ready", flush=True)
for n in range(10**6):
    write_block(Path({str(tmp_path)!r}) / f"{{n:032x}}-{{0:032x}}-1.kv", {{"weights": "abc"}}, "00", [n], [part])
"""
    for delay in (0.0, 0.005, 0.02):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    part = torch.zeros(1 << 22, dtype=torch.uint8)
    for path in tmp_path.glob("*-1.kv"):
        assert read_block(path, [part]).payload_bytes == 1 << 22 and bool((part == 7).all())
    for path in tmp_path.glob("*.part"):
        os.utime(path, (0, 0))
    again = disk_of(storage, tmp_path)
    assert again.load(content(1, 2, 3, 4), 2)
    assert not list(tmp_path.glob("*.part")), "what a killed writer began is removed once it is old"


def test_host_memory_keeps_within_its_bytes_and_hands_down_the_oldest() -> None:
    storage, given_up = Storage(), []
    host = HostTier(storage, 2 * SIZE, lambda content, parts: given_up.append((content, int(parts[0][0, 0]))))
    for index in range(3):
        storage.write(1, index + 1)
        host.keep(content(index), 1)
    assert given_up == [(content(0), 1)] and host.num_bytes == 2 * SIZE
    assert host.load(content(1), 4) and storage.holds(4) == 2
    assert host.longest(ROOT, [2, 3]) == (content(2), 1) and not host.load(content(0), 5)


def manager_of(storage: Storage, tier: Tier, num_blocks: int) -> BlockManager:
    def copy(source: int, target: int, _: int) -> None:
        storage.memory[target] = storage.memory[source]

    return BlockManager(num_blocks, BLOCK, "model", copy, tier=tier)


def live(manager: BlockManager, storage: Storage, token_ids: list[int]) -> tuple[int, int]:
    """Let one prompt live; every block is filled with its first token. Return cached and restored tokens."""
    admitted = manager.admit(token_ids, 1)
    assert admitted is not None
    table, cached = admitted
    restored = table.num_restored
    manager.reach(table, len(token_ids))
    for index, block in enumerate(table.blocks):
        if index * BLOCK < cached:
            assert storage.holds(block) == token_ids[index * BLOCK], "what is taken over is this conversation's"
        else:
            storage.write(block, token_ids[index * BLOCK])
    manager.release(table, token_ids, len(token_ids))
    return cached, restored


@pytest.mark.parametrize("where", ["disk", "host", "both"])
def test_what_the_pool_gave_up_comes_back_and_is_counted(tmp_path: Path, where: str) -> None:
    storage = Storage(4)
    disk, host = disk_of(storage, tmp_path), HostTier(storage, 1 << 20)
    tiers: dict[str, list[Tier]] = {"disk": [disk], "host": [host], "both": [host, disk]}
    manager = manager_of(storage, Chain(tiers[where]), 4)
    first, second = list(range(1, 15)), list(range(101, 115))
    assert live(manager, storage, first) == (0, 0)
    assert live(manager, storage, second) == (0, 0)
    assert live(manager, storage, first) == (13, 13)
    assert live(manager, storage, [*second[:6], 90, 91]) == (6, 6)
    assert manager.num_free == 4


def test_a_block_that_cannot_be_loaded_is_computed_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(4)
    manager = manager_of(storage, disk_of(storage, tmp_path), 4)
    first = list(range(1, 15))
    live(manager, storage, first)
    live(manager, storage, list(range(101, 115)))
    second = content_after(content(*first[:4]).digest, first[4:8])
    damaged = next(tmp_path.glob(f"{second.digest.hex()}*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert live(manager, storage, first) == (4, 4)
    assert "ends before its block does; its 4 tokens are computed again" in caplog.text
    assert manager.num_free == 4


def test_short_contexts_are_worth_no_file_and_long_ones_every_block(tmp_path: Path) -> None:
    storage = Storage(12)
    disk = DiskTier(tmp_path, MADE_BY, storage, 1 << 20, min_tokens=BLOCK)
    manager = manager_of(storage, disk, 12)
    for token_ids in ([1] * 14, [2] * 3, [3] * 14):
        live(manager, storage, token_ids)
    found = [content.token_ids[0] for _, content in manager.remembered() if disk.wants(content)]
    assert found == [3, 3, 3, 3, 1, 1, 1, 1], "the latest first"
    for first in range(10, 16):
        live(manager, storage, [first] * 14)
    assert {path.name.rpartition("-")[2] for path in tmp_path.iterdir()} == {"2.kv", "4.kv"}
    live(manager, storage, list(range(50, 62)))
    before = len(list(tmp_path.iterdir()))
    for first in range(20, 40):
        live(manager, storage, [first] * 3)
    assert not any(path.name.endswith("-3.kv") for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) > before, "what was long has been given up for them"


def test_a_question_opens_each_file_that_may_begin_alike_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    for index in range(5):
        disk_of(storage, tmp_path).keep(content(7, index), 1)
    opened: list[Path] = []
    monkeypatch.setattr(disk_tier, "read_header", lambda path: opened.append(path) or read_header(path))
    again = disk_of(storage, tmp_path)
    assert again.longest(b"1" * 16, [7, 3]) is None and not opened
    for _ in range(3):
        assert again.longest(ROOT, [7, 3, 1]) == (content(7, 3), 2)
    assert len(opened) == 5
