"""Report of dropped clips (`dropped.jsonl`), written by all ranks of a run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from slap_fast.data.format.dataset_files import json_line

logger = logging.getLogger(__name__)


class DroppedClip(NamedTuple):
    """A clip that could not be used: key, shard, reason, and the step it was sampled in."""

    key: str
    shard: str
    reason: str
    step: int


class DropReport:
    """Appends one JSON object per dropped clip to a file, `{"key", "shard", "reason", "step"}`, and syncs it to disk.

    All ranks append to the same file, each its own clips. Clips of steps that a resumed run repeats are not reported
    twice: a step always drops the same clips.
    """

    def __init__(self, path: Path, *, start_step: int) -> None:
        """
        Args:
            path: the file; it and its folder are created with the first clip.
            start_step: first step of this run; reports of earlier steps are final.
        """
        self._path = path
        self._reported = _read(path, start_step)

    def add(self, dropped: Iterable[DroppedClip]) -> None:
        """Reports clips. A file that cannot be written is logged; the run continues."""
        new = [clip for clip in dict.fromkeys(dropped) if clip not in self._reported]
        if not new:
            return
        try:
            _append(self._path, b"".join(json_line(clip._asdict()) for clip in new))
        except OSError as error:
            logger.warning("%s: cannot write (%s); %d dropped clips are missing from it", self._path, error, len(new))
            return
        self._reported.update(new)


def _read(path: Path, start_step: int) -> set[DroppedClip]:
    """The clips reported for steps from `start_step` on, without lines that a crash truncated."""
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
        # Appending is atomic on local file systems. Network file systems need the lock (if they support locks).
        with contextlib.suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        # A crash may have left an unterminated line, which must not corrupt this one.
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
