"""Free memory and the process-wide thread setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qlocal import devices
from qlocal.errors import UsageError


def test_free_memory_is_what_the_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    assert devices.free_bytes("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_container_limits_free_memory_and_file_pages_make_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.current").write_text("30000000\n")
    assert devices.free_bytes("cpu") == 20_000_000
    (tmp_path / "memory.stat").write_text("anon 25000000\ninactive_file 3000000\nactive_file 1000000\n")
    assert devices.free_bytes("cpu") == 24_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_bytes("cpu") > 50_000_000


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:x", "cpu:0", ""])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(UsageError, match="is unknown"):
        devices.free_bytes(device)


def test_planning_needs_no_torch() -> None:
    code = "import sys, qlocal.plan, qlocal.devices, qlocal.engine.rank; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def hyperthreads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of four cores with two threads each, and no container; returns the folder of its cgroup."""
    for cpu in range(8):
        topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(devices, "_CPUS", tmp_path / "cpu")
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def test_a_thread_a_physical_core_is_the_default(hyperthreads: Path) -> None:
    assert devices.default_threads() == 4


def test_threads_keep_to_the_cores_that_a_process_may_use(hyperthreads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4})
    assert devices.default_threads() == 2


@pytest.mark.parametrize(("quota", "threads"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4)])
def test_a_containers_quota_limits_threads(hyperthreads: Path, quota: str, threads: int) -> None:
    (hyperthreads / "cpu.max").write_text(f"{quota}\n")
    assert devices.default_threads() == threads


@pytest.fixture
def two_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two NUMA nodes of four logical CPUs, and one that has memory alone."""
    for node, cpus in enumerate(("0-1,4-5", "2-3,6-7", "")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{cpus}\n")
    monkeypatch.setattr(devices, "_NODES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_ranks_are_dealt_over_the_nodes_that_have_cpus(two_sockets: None) -> None:
    first, second = [0, 1, 4, 5], [2, 3, 6, 7]
    assert devices.numa_cpus(2) == [first, second]
    assert devices.numa_cpus(4) == [first, first, second, second]
    assert devices.numa_cpus(3) is None


def test_one_usable_node_leaves_nothing_to_choose(two_sockets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert devices.numa_cpus(2) is None


def test_the_users_own_thread_setting_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    devices.keep_threads_calm()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    devices.keep_threads_calm()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_freed_blocks_are_used_again_instead_of_being_cleared_anew() -> None:
    code = """
import resource, sys, torch
from qlocal import devices
if "kept" in sys.argv:
    devices.keep_freed_memory()
torch.ones(48 << 18)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(48 << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True).stdout)
        for how in ("kept", "given back")
    }
    if faults["given back"] < 100_000:
        pytest.skip("this C library gives nothing back by default")
    assert faults["kept"] < faults["given back"] / 4
