"""The file of a library database: opened for what it is, and each failure told with what to do about it.

A file that is empty, truncated or of another kind is refused before SQLite reads it. Where the folder cannot be
written, SQLite cannot make the files that readers and a writer share (`-wal`, `-shm`); the file is then read as
immutable. That is right only while nobody writes: so it is refused while a write-ahead log has content, and reading
stops with an error when the file changes.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from slap_fast.library.errors import LibraryError

# A 768-wide embedding has 3,072 bytes: a page of SQLite's default size has room for one, of this size for five.
PAGE_BYTES = 16384
BUSY_SECONDS = 30
# Above this, the writer waits for a moment without readers, and empties the log.
LOG_BYTES = 64 << 20
_HEADER = b"SQLite format 3\0"
_MOVE_AWAY = (
    "move the library away and index again (recordings are never changed by it), or copy its folder back from a backup"
)


class DatabaseFile:
    """How one `library.sqlite` is opened, and whether the open file is still the one of that name."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """
        Raises:
            LibraryError: there is no such file, or it cannot be a library.
        """
        self.path = path
        self.write = write
        self._log = path.with_name(path.name + "-wal")
        self.immutable = False
        self._identity = _checked_identity(path, self._log)
        self._changed = _change(path)

    def connect(self) -> sqlite3.Connection:
        """A connection in autocommit mode, for any thread; one at a time may use it.

        Raises:
            LibraryError: the file is damaged, or not readable as it is.
        """
        if self.write:
            return self._open("rw")
        try:
            return self._open("ro")
        except LibraryError as error:
            code = getattr(error.__cause__, "sqlite_errorcode", None) or str(error.__cause__)
            if not _cannot_share(code) or not self.path.is_file() or _writable(self.path.parent):
                raise
            if _size(self._log):
                raise LibraryError(
                    f"{self.path}: its folder cannot be written, and {self._log.name} has writes that are not in the "
                    "file yet; open the library once where it can be written (`slap-fast index LIBRARY`), then copy "
                    "it again"
                ) from error
            self.immutable = True
            return self._open("ro&immutable=1")

    def _open(self, mode: str) -> sqlite3.Connection:
        connection = None
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_SECONDS,
                check_same_thread=False,
                isolation_level=None,
            )
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if self.write:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
                # Taken and given back: a read-only medium is reported here, not after hours of embedding.
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            return connection
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise explain(self.path, error) from error

    def check_unmoved(self) -> None:
        """
        Raises:
            LibraryError: the file was deleted or replaced since it was opened, or changed although it is immutable.
        """
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise LibraryError(
                f"{self.path}: it was deleted or its drive is gone while the library was open ({error.strerror}); "
                "open the library again when it is back"
            ) from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise LibraryError(f"{self.path}: it was replaced while the library was open; open the library again")
        if self.immutable and (_change(self.path) != self._changed or _size(self._log)):
            raise LibraryError(
                f"{self.path}: it was changed while it was open on a read-only folder; open the library again"
            )

    def empty_log(self, connection: sqlite3.Connection, *, above: int) -> None:
        """Move what was committed into the file and empty the log, if it is larger than `above` bytes.

        Readers that are in a transaction for longer than a second prevent it; it is then done after a later commit.
        """
        if _size(self._log) <= above:
            return
        connection.execute("PRAGMA busy_timeout = 1000")
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")

    def close(self, connection: sqlite3.Connection) -> None:
        """Close a connection, with an empty log if nobody reads."""
        try:
            if self.write:
                self.empty_log(connection, above=0)
        except sqlite3.Error:
            pass  # What was committed is in the log, and the next writer moves it.
        finally:
            connection.close()


def how_to_make(folder: Path) -> str:
    """The command that makes a library, for people who named a folder that is none: perhaps one of recordings."""
    try:
        taken = any(entry.name != "lock" for entry in folder.iterdir())
    except OSError:  # there is none, or it cannot be read
        taken = False
    if taken:
        return (
            f"if it has recordings, make one of them in a new folder: `slap-fast index LIBRARY --model MODEL {folder}`"
        )
    return f"make one with `slap-fast index {folder} --model MODEL FOLDER`"


def explain(path: Path, error: sqlite3.Error) -> LibraryError:
    """The error for people: what is wrong with the file, and what to do."""
    text = str(error)
    if "closed database" in text:
        return LibraryError(f"{path}: the library is closed; open it again")
    if "full" in text:
        return LibraryError(f"{path}: the disk is full; free some space and run the same command again, it continues")
    if "locked" in text or "busy" in text:
        return LibraryError(f"{path}: another process has been writing for {BUSY_SECONDS} s; try again when it is done")
    if "readonly" in text:
        return LibraryError(f"{path}: it cannot be written; copy the library to a folder that can")
    if "malformed" in text or "not a database" in text or "no such table" in text or "no such column" in text:
        return LibraryError(f"{path}: is damaged ({text}); `PRAGMA quick_check` of SQLite tells more; {_MOVE_AWAY}")
    if "unable to open" in text:
        return LibraryError(f"{path}: cannot be opened ({text}); see the permissions of the file and its folder")
    if "I/O error" in text:
        return LibraryError(f"{path}: its drive does not answer ({text}); check the drive, then open the library again")
    return LibraryError(f"{path}: {text}")


def _checked_identity(path: Path, log: Path) -> tuple[int, int]:
    """Device and inode of a file that may be a database."""
    if not path.is_file():
        if not path.parent.parent.is_dir():
            raise LibraryError(
                f"{path.parent}: no such folder, and {path.parent.parent} does not exist either; is its drive mounted?"
            )
        raise LibraryError(f"{path.parent}: no library here; {how_to_make(path.parent)}")
    try:
        found = path.stat()
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise LibraryError(f"{path}: cannot be read ({error.strerror}); see its permissions and its drive") from error
    if not header:
        raise LibraryError(f"{path}: is empty: it was damaged or copied in part; {_MOVE_AWAY}")
    if header[:16] != _HEADER:
        raise LibraryError(f"{path}: is no database of SQLite: it was damaged or is another file; {_MOVE_AWAY}")
    # https://www.sqlite.org/fileformat.html: bytes 28 to 31 are the pages of the file, if bytes 24 to 27 equal the last
    # four of the header. Pages may still be in the log.
    pages, page = int.from_bytes(header[28:32], "big"), int.from_bytes(header[16:18], "big")
    expected = pages * (65536 if page == 1 else page)
    if len(header) < 100 or (header[24:28] == header[92:96] and found.st_size < expected and not _size(log)):
        raise LibraryError(f"{path}: is truncated: {found.st_size} of {expected} bytes; {_MOVE_AWAY}")
    return found.st_dev, found.st_ino


def _cannot_share(code: int | str) -> bool:
    """Whether SQLite could not make or open the files beside the database (SQLITE_CANTOPEN, SQLITE_READONLY)."""
    if isinstance(code, int):
        return code & 0xFF in (8, 14)
    return "unable to open" in code or "readonly" in code


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _change(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
