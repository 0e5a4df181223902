"""Test benchmark of three cases; the reference of the second raises."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.harness.case import Case, Outputs, Settings
from tests.benchmarks import toy

TITLE = "Sums in a row"


def _no_reference() -> Outputs:
    raise torch.OutOfMemoryError("tried to allocate 224 GB")


def cases(settings: Settings) -> list[Case]:
    (case,) = toy.cases(settings)
    return [
        replace(case, name="first"),
        replace(case, name="without reference", reference=_no_reference),
        replace(case, name="last"),
    ]
