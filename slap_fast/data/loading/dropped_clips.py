"""Which clips a run could not use: `dropped.jsonl`, written by all ranks together."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)


class DroppedClip(NamedTuple):
    """A clip that could not be used: its key, the shard it lies in, why, and the step that met it."""

    key: str
    shard: str
    reason: str
    step: int


class DropReport:
    """Appends to a file one JSON object a dropped clip, `{"key", "shard", "reason", "step"}`; on the disk at once.

    Ranks write to one file, each its own clips. Steps that a continued run takes again are not reported again: what is
    dropped in a step depends on the step alone.
    """

    def __init__(self, path: Path, *, start_step: int) -> None:
        """
        Args:
            path: of the file, which is made with the first clip; so is its folder.
            start_step: of this run; earlier steps have been reported for good.
        """
        self._path = path
        self._reported = _read(path, start_step)

    def add(self, dropped: Iterable[DroppedClip]) -> None:
        """Report clips. Where the file cannot be written that is logged, and the run goes on."""
        new = [clip for clip in dict.fromkeys(dropped) if clip not in self._reported]
        if not new:
            return
        text = "".join(json.dumps(clip._asdict(), ensure_ascii=False) + "\n" for clip in new)
        try:
            _append(self._path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            logger.warning("%s: cannot write (%s); %d dropped clips are missing from it", self._path, error, len(new))
            return
        self._reported.update(new)


def _read(path: Path, start_step: int) -> set[DroppedClip]:
    """What the file says of steps from `start_step` on; a line that a crash cut short says nothing."""
    found = set()
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, TypeError):
                    clip = DroppedClip(**json.loads(line))
                    if clip.step >= start_step:
                        found.add(clip)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s: cannot read (%s); clips may be reported twice", path, error)
    return found


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        # Appending is atomic on local file systems; on network ones the lock makes it so, where they have locks.
        with contextlib.suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        # A crash may have left half a line, which must not take this one with it.
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
