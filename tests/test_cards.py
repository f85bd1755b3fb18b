"""Cards are counted as CUDA counts them, and what is missing is said in a sentence."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from qlocal import cards, devices
from qlocal.errors import UsageError

GIB = 1 << 30


class NVMLError(Exception):
    pass


@dataclass
class Driver:
    """Stands for pynvml: cards by number and UUID, with (free, total) GiB each."""

    memory: dict[str, tuple[int, int]]
    NVMLError = NVMLError

    def nvmlInit(self) -> None:
        if not self.memory:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.memory)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return list(self.memory)[index]

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        if name not in self.memory:
            raise NVMLError("Not Found")
        return name

    def nvmlDeviceGetMemoryInfo(self, name: str) -> SimpleNamespace:
        free, total = self.memory[name]
        return SimpleNamespace(free=free * GIB, total=total * GIB)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Three cards, of which the second is much used."""
    found = Driver({"GPU-a": (23, 24), "GPU-b": (4, 24), "GPU-c": (15, 16)})
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.delenv(cards.VISIBLE, raising=False)
    return found


@pytest.mark.usefixtures("driver")
def test_free_memory_is_what_other_programs_leave() -> None:
    assert [devices.free_bytes(f"cuda:{i}") // GIB for i in range(3)] == [23, 4, 15]
    assert devices.taken_bytes("cuda:1") == 20 * GIB
    assert devices.taken_bytes("cpu") == 0


@pytest.mark.parametrize(("visible", "free"), [("2,0", [15, 23]), ("GPU-b", [4]), ("1, GPU-c", [4, 15])])
@pytest.mark.usefixtures("driver")
def test_visible_cards_are_numbered_anew(visible: str, free: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cards.VISIBLE, visible)
    assert [cards.card_memory(i).free // GIB for i in range(len(free))] == free
    with pytest.raises(UsageError, match=f"cuda:{len(free)} cannot be used: CUDA_VISIBLE_DEVICES=.* shows"):
        cards.card_memory(len(free))


@pytest.mark.usefixtures("driver")
def test_a_card_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="cuda:3 cannot be used: the driver knows 3 cards"):
        cards.card_memory(3)


@pytest.mark.usefixtures("driver")
def test_a_card_that_the_driver_does_not_find_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cards.VISIBLE, "GPU-x")
    with pytest.raises(UsageError, match="cuda:0 cannot be used: Not Found"):
        cards.card_memory(0)


def test_a_machine_without_a_driver_says_so(driver: Driver) -> None:
    driver.memory.clear()
    with pytest.raises(UsageError, match=r"cuda:0 cannot be used: there is no NVIDIA driver here .*--devices cpu"):
        devices.free_bytes("cuda:0")


def test_cuda_is_told_to_count_as_the_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    cards.number_by_bus()
    assert cards.os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    cards.number_by_bus()
    assert cards.os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
