"""Pytest plugin: a sticky CUDA error ends one worker process, not the whole run.

After an illegal memory access, every later CUDA call of the process fails with the same error. The plugin synchronizes
after each phase of a test, so that the error is reported for the test that caused it. If the device is lost, a worker
of pytest-xdist exits after its reports are sent, and is replaced; a run without workers stops.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import torch


def _device_error() -> str | None:
    """The sticky error of the device; None if there is none or CUDA was not used. Out of memory is not sticky."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


class LostDevice:
    """The plugin, in a worker or in the controller."""

    def __init__(self) -> None:
        self._lost: str | None = None
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if self._lost is None and (error := _device_error()) is not None:
            self._lost = f"the GPU was lost in {item.nodeid}: {error}"
            if not report.failed:
                report.outcome, report.longrepr = "failed", self._lost
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        if self._lost is not None:
            if hasattr(item.config, "workerinput"):
                # All reports are already in the controller's pipe. If the protocol completed first, the next test would
                # be reported as the one that crashed.
                os._exit(1)
            item.session.shouldstop = self._lost
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """The failure was reported before the worker exited: turn the crash report into a passed teardown."""
        if crashitem in self._failed:
            report.when, report.outcome, report.longrepr = "teardown", "passed", None
