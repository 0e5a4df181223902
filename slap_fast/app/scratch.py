"""Folder of the temporary files of a running page, and what is left of pages that were killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

_PREFIX = "slap-fast-app-"
_LOCK = "lock"
_STARTING_SECONDS = 600.0  # a folder without a lock may be that of a page that starts, for so long


def make_folder() -> tuple[Path, BinaryIO]:
    """A new folder, and the open file whose lock says that its page runs."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # Locked before it has its name, so that no other page takes the folder for one that was left.
    lock = (folder / f"{_LOCK}.new").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / f"{_LOCK}.new").rename(folder / _LOCK)
    return folder, lock


def delete_left_folders() -> None:
    """Delete the folders of this user's pages that no longer run, as `kill -9` leaves them.

    One may have no lock: its page was killed before it had one, or while it deleted the folder.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            if not (folder / _LOCK).exists():
                if time.time() - folder.stat().st_mtime > _STARTING_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # it runs, or is none of ours
            continue
