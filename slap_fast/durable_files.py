"""Files that are whole or absent after a crash at any moment, a power cut included."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_readers(path: Path) -> None:
    """Let all read a file that may read its folder: what was written through a temporary file is its owner's alone."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def replace_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Replace a file as one event: readers see the old content or the new, and so does a machine after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
