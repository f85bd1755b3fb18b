"""Measuring the way between two devices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlocal import doctor
from qlocal.parallel.probe import measure


def test_devices_that_are_no_cards_have_no_exchange() -> None:
    assert measure(["cpu", "cpu"]) is None


def test_who_does_not_answer_is_not_waited_for() -> None:
    assert measure(["cpu", "cpu"], wait_s=0.01) is None


def test_doctor_tells_how_two_cards_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(
        NVMLError=RuntimeError,
        NVML_P2P_CAPS_INDEX_READ=0,
        NVML_P2P_STATUS_OK=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetP2PStatus=lambda first, second, what: 4,
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", driver)
    monkeypatch.setattr(doctor, "measure", lambda devices: 8.5)
    assert doctor._links() == [
        {"devices": "cuda:0 cuda:1", "peer access": "no", "sum of 16 KiB": "8.5 us through host memory"}
    ]
    driver.nvmlDeviceGetCount = lambda: 1
    assert doctor._links() == doctor.NO_LINK
