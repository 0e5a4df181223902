"""Folder of uploads: how much is in it, and deletion of what is old.

Gradio writes an upload into it as it arrives, and forgets one that was broken off: so files go by their age, whoever
made them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

KEPT_SECONDS = 3600.0
"""Age at which an upload is deleted."""

KEPT_UPLOADS = 10
"""All uploads together may be as large as this many of the largest one."""

_EVERY_SECONDS = 600.0


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(status.st_size for status in _statuses(folder))


def delete_old(folder: Path, age: float = KEPT_SECONDS) -> None:
    """Delete the files below a folder that were last written at least `age` seconds ago, and folders empty as long."""
    before = time.time() - age
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            path = os.path.join(parent, name)
            with suppress(OSError):  # gone, or a folder that is not empty
                if os.lstat(path).st_mtime <= before:
                    (os.rmdir if name in folders else os.unlink)(path)


def delete_old_regularly(folder: Path) -> None:
    """`delete_old` every ten minutes for as long as the process lives, in a thread."""

    def delete() -> None:
        while True:
            time.sleep(_EVERY_SECONDS)
            delete_old(folder)

    threading.Thread(target=delete, name="old uploads", daemon=True).start()


def _statuses(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                yield os.lstat(os.path.join(parent, name))
