"""Test benchmark with a peer whose result is wrong."""

from __future__ import annotations

from benchmarks.harness.case import Case, Settings
from tests.benchmarks.toy import broken_case

TITLE = "A broken sum"


def cases(settings: Settings) -> list[Case]:
    return [broken_case()]
