"""Writer lock: one process at a time may change a library."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slap_fast.library.errors import LibraryError

FILE_NAME = "lock"


@contextmanager
def writer_lock(library: Path) -> Iterator[None]:
    """Hold the lock of a library. The kernel releases it when the process ends, however it does.

    Raises:
        LibraryError: another process has it; the message has its id and host.
        OSError: the folder cannot be written.
    """
    library.mkdir(parents=True, exist_ok=True)
    path = library / FILE_NAME
    # Worker processes do not inherit the descriptor, so a lock does not outlive this process.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            owner = os.read(descriptor, 400).decode(errors="replace").strip() or "another process"
            raise LibraryError(
                f"{library}: {owner} is changing this library; wait until it is done, or stop it"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
