"""Small test benchmark, with correct, wrong, raising and unavailable peers."""

from __future__ import annotations

import torch

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings

TITLE = "Sums of nothing much"
MEBIBYTE = 2**20


def _reference() -> Outputs:
    return {"sum": torch.tensor(1000.0)}


def _peer(name: str, *, megabytes: int = 1, offset: float = 0.0) -> Peer:
    def setup() -> Run:
        values = torch.ones(1000)

        def step() -> float:
            return float(torch.zeros(megabytes * MEBIBYTE // 4).sum() + values.sum())

        return Run(step=step, outputs=lambda: {"sum": values.sum() + offset})

    return Peer(name, setup)


def _raise() -> Run:
    raise RuntimeError("no such kernel")


def cases(settings: Settings) -> list[Case]:
    good = Case(
        name="right",
        peers=(
            _peer("small"),
            _peer("large", megabytes=64),
            Peer("absent", _raise, unavailable="libsum is not installed"),
        ),
        baseline="large",
        reference=_reference,
        tolerance=1e-6,
        work={"numbers": 1000},
        facts={"numbers": 1000},
    )
    return [good]


def broken_case() -> Case:
    return Case(
        name="broken",
        peers=(_peer("right"), _peer("wrong", offset=1.0), Peer("raising", _raise)),
        baseline="right",
        reference=_reference,
        tolerance=1e-6,
    )
