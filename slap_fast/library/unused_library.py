"""Removal of a library that was made for recordings and got none, because the command that made it ended before."""

from __future__ import annotations

from pathlib import Path

from slap_fast.library.database import FILE_NAME, Database
from slap_fast.library.indexing.writer_lock import FILE_NAME as LOCK_NAME
from slap_fast.library.indexing.writer_lock import writer_lock


def remove_unused(library: Path, *, keep_folder: bool) -> None:
    """Delete the files of a library that has no folders and no recordings; another one is left as it is.

    Args:
        library: its folder, which may be missing.
        keep_folder: whether the folder was there before the library.

    Raises:
        LibraryError: another process changes the library.
        OSError: a file cannot be deleted.
    """
    if not library.is_dir():
        return
    with writer_lock(library):
        if (library / FILE_NAME).exists():
            with Database(library, write=True) as database:
                if database.folders() or database.recordings():
                    return
        for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", LOCK_NAME):
            (library / name).unlink(missing_ok=True)
    if not keep_folder and not any(library.iterdir()):
        library.rmdir()
