"""Test benchmark whose steps return 32 MiB; one peer also uses working memory and keeps some memory."""

from __future__ import annotations

import torch

from benchmarks.harness.case import Case, Peer, Run, Settings
from tests.benchmarks.toy import MEBIBYTE

TITLE = "Ones"


def _ones(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MEBIBYTE // 4)


def _peer(name: str, *, scratch: int, kept: int) -> Peer:
    def setup() -> Run:
        cache: list[torch.Tensor] = []

        def step() -> torch.Tensor:
            cache[:] = cache or [_ones(kept)]
            result = _ones(32)
            if scratch:
                result *= _ones(scratch).mean()
            return result

        return Run(step=step, outputs=lambda: {"ones": _ones(1)})

    return Peer(name, setup)


def cases(settings: Settings) -> list[Case]:
    peers = (_peer("lean", scratch=0, kept=0), _peer("wasteful", scratch=24, kept=16))
    return [Case("returning", peers, "lean", lambda: {"ones": _ones(1)}, 0.0, work={"audio seconds": 60.0})]
