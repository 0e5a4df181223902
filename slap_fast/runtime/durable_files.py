"""Durable file writes: after a crash or power cut at any moment a file is either old or new, never partial."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inherit_folder_permissions(path: Path) -> None:
    """Give a file the read and write permissions of its folder: a temporary file is readable by its owner only."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def replace_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Replace a file atomically: readers, and the disk after a crash, see the old content or the new.

    Raises:
        OSError: as `replace_file_with`.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.writelines(chunks)

    replace_file_with(path, write)


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with UTF-8 text."""
    replace_file(path, [text.encode("utf-8")])


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes `folder` if the block succeeds and is deleted if it fails.

    Raises:
        OSError: it cannot be written, or `folder` exists and is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_file_with(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file atomically by the file that `write` creates at the path it is given.

    Several processes may replace the same file at once: each writes its own temporary file, and the last one wins.

    Raises:
        OSError: `path` cannot be written; it is unchanged then. The error holds `path`, not the temporary file.
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
    """Write contiguous CPU tensors, with the permissions of the folder.

    Raises:
        OSError: the file cannot be written, in place of the library's SafetensorError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise os_error(path, error) from error
    inherit_folder_permissions(path)


def os_error(path: Path, error: Exception) -> OSError:
    """The OSError that the error of a Rust library contains as text."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error), str(path))
