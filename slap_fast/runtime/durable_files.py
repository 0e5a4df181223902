"""Files that are whole or absent after a crash at any moment, a power cut included."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.writelines(chunks)

    replace_whole(path, write)


def replace_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file as one event by what `write` writes to the path that it is given.

    Any number of processes may do so at once: each has a temporary file of its own, and the last one to end counts.

    Raises:
        OSError: `path` cannot be written, by its name; what was there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors of the CPU, as all may read them that may read the folder.

    Raises:
        OSError: the file cannot be written; the library's own error is of no such kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise os_error(path, error) from error
    open_to_readers(path)


def os_error(path: Path, error: Exception) -> OSError:
    """What a library of Rust's could not write, as Python would say it."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error), str(path))
