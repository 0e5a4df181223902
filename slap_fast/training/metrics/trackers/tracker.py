"""One run of one tracker: the interface that the adapters of the libraries implement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class TrackedRun:
    """Where a tracker keeps the run, as stored in `trackers.json`."""

    project: str
    name: str
    id: str


class Tracker(Protocol):
    """One run of one tracker. Any exception of a method means that the tracker has failed."""

    run: TrackedRun | None
    """What a later call needs to continue the run; None if it continues by the output folder alone."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
