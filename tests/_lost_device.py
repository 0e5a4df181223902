"""A CUDA error from which a device does not recover costs its process, not the run.

After an illegal access, every later call of that process fails with the same error. So the device is waited for after
each phase of a test, which makes an error that of the test that caused it. Where it does not answer, a worker of
pytest-xdist ends, once its reports are sent, and is replaced; a run without workers stops.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import torch


def _device_error() -> str | None:
    """Why the device no longer answers, None if it does or was never used. Running out of memory is no such error."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


class LostDevice:
    """A plugin of one process, worker or controller."""

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
                # All reports are in the controller's pipe. Were the protocol completed first, the next test would be
                # taken for the one that crashed.
                os._exit(1)
            item.session.shouldstop = self._lost
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """The test of a worker that ended itself is reported already: what is left of it is a teardown."""
        if crashitem in self._failed:
            report.when, report.outcome, report.longrepr = "teardown", "passed", None
