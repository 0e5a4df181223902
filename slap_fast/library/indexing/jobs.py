"""Jobs of indexing and the events that answer them; small and picklable, as they travel between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from slap_fast.library.database import WindowRow

GROUP = 12
"""Consecutive windows that go to one worker where several share a recording: a minute."""


@dataclass(frozen=True)
class Job:
    """A recording to embed, or the share of one worker in it.

    Attributes:
        number: of the recording, in this update.
        path: of the file or the dataset.
        member: key of the clip in the dataset; empty for a file.
        clip: number of the clip in the dataset.
        skip: windows at the begin that were embedded before.
        part: which groups of `GROUP` windows to embed: those with `group % parts == part`.
        parts: workers that share the recording. Each decodes all of it.
        size: bytes of the recording.
    """

    number: int
    path: str
    member: str = ""
    clip: int = -1
    skip: int = 0
    part: int = 0
    parts: int = 1
    size: int = 0

    def wants(self, window: int) -> bool:
        return window >= self.skip and window // GROUP % self.parts == self.part


class Embedded(NamedTuple):
    """Consecutive windows of a recording, from window `first` on, and its length as its header has it."""

    job: Job
    first: int
    rows: list[WindowRow]
    declared: float | None


class Finished(NamedTuple):
    """The end of a recording: number of windows, length, and the row of all of it if there is one besides windows."""

    job: Job
    windows: int
    seconds: float
    whole: WindowRow | None


class Failed(NamedTuple):
    """A recording that cannot be embedded; reasons as in `Failure`."""

    job: Job
    reason: str
    detail: str


Event = Embedded | Finished | Failed
