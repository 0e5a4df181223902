"""Pytest plugin: `pytest -m gpu` works without packages that only other tests need.

A file that cannot be imported because a package is missing is skipped (listed by `-rs`) if it has no GPU test. With GPU
tests, or in any run without `-m gpu`, it is an error.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

_OWN = {"slap_fast", "tests", "benchmarks"}


def _missing_package(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in _OWN:
            return error.name
        error = error.__cause__ or error.__context__
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    call: pytest.CallInfo[object] | None = getattr(report, "call", None)
    if not report.failed or call is None or call.excinfo is None or not isinstance(collector, pytest.Module):
        return report
    package = _missing_package(call.excinfo.value)
    if (
        package is not None
        and collector.config.option.markexpr == "gpu"
        and "mark.gpu" not in collector.path.read_text(encoding="utf-8")
    ):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 1, f"Skipped: no GPU test in it, and {package} is not installed")
        del report.call
    return report
