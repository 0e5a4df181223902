"""Library database: recordings and the embeddings of their windows, in one SQLite file.

SQLite is the only truth of a library. What makes a search fast (`vectors/`, `text/`) is derived from it and can be
deleted. A write-ahead log lets any number of processes read while one writes, and a transaction is whole or absent
after a crash. Embeddings of a recording that is not embedded to its end are in a table of their own, where no search
sees them.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from slap_fast.library.errors import LibraryError

FILE_NAME = "library.sqlite"
FORMAT_VERSION = 1

State = Literal["complete", "partial", "failed"]

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE folders (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE recordings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path BLOB NOT NULL,                  -- absolute, as the file system has it: any bytes
    member TEXT NOT NULL,                -- key of a clip in the prepared dataset `path`; empty for a file
    size INTEGER NOT NULL,               -- bytes
    mtime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL,                -- BLAKE2b-128 of the content
    seconds REAL NOT NULL,               -- duration; of a partial recording, how far it was embedded
    state TEXT NOT NULL CHECK (state IN ('complete', 'partial', 'failed')),
    reason TEXT NOT NULL,                -- why it failed: AudioError.reason
    detail TEXT NOT NULL,
    embedding BLOB,                      -- [D] float32, of the recording as a whole
    UNIQUE (path, member)
);
CREATE INDEX recordings_by_digest ON recordings (digest);
CREATE TABLE windows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- ascending, never used again
    recording INTEGER NOT NULL REFERENCES recordings (id) ON DELETE CASCADE,
    start REAL NOT NULL,                 -- seconds
    end REAL NOT NULL,
    whole INTEGER NOT NULL,              -- 1 for the embedding of a whole recording
    embedding BLOB NOT NULL              -- [D] float32, unit length
);
CREATE INDEX windows_by_recording ON windows (recording);
CREATE TABLE partial_windows (
    recording INTEGER NOT NULL REFERENCES recordings (id) ON DELETE CASCADE,
    start REAL NOT NULL, end REAL NOT NULL, whole INTEGER NOT NULL, embedding BLOB NOT NULL
);
CREATE INDEX partial_windows_by_recording ON partial_windows (recording);
CREATE VIEW rows AS
    SELECT windows.id, CAST(path AS TEXT) AS file, member, start, end, whole, windows.embedding, seconds AS duration,
        mtime_ns, size, hex(digest) AS content_hash, (SELECT value FROM meta WHERE key = 'model') AS model
    FROM windows JOIN recordings ON recordings.id = windows.recording;
"""


@dataclass(frozen=True)
class Recording:
    """One recording of a library.

    Attributes:
        id: number of the row.
        path: absolute path of the file, or of the prepared dataset that has the clip.
        member: key of the clip in the dataset; empty for a file.
        size: bytes.
        mtime_ns: modification time of the file.
        digest: BLAKE2b-128 of the content.
        seconds: duration; of a partial recording, the length that was embedded so far.
        state: `complete`, `partial` (not embedded to its end) or `failed`.
        reason: of a failure, as `AudioError.reason`.
        detail: of a failure, for people.
    """

    id: int
    path: str
    member: str
    size: int
    mtime_ns: int
    digest: bytes
    seconds: float
    state: State
    reason: str = ""
    detail: str = ""

    @property
    def name(self) -> str:
        """For people and for `open`: the path; of a clip in a dataset, `path#key`."""
        return f"{self.path}#{self.member}" if self.member else self.path


class WindowRow(NamedTuple):
    """A window of a recording: seconds from its start, whether it is the whole recording, and `[D]` float32."""

    start: float
    end: float
    whole: bool
    embedding: np.ndarray


class WindowPlace(NamedTuple):
    """Where a window is."""

    id: int
    recording: int
    start: float
    end: float
    whole: bool


_COLUMNS = "id, path, member, size, mtime_ns, digest, seconds, state, reason, detail"


class Database:
    """The SQLite file of a library. Safe to share between threads. Close it, or use it as a context manager."""

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        """Open an existing database.

        Raises:
            LibraryError: there is none, it is damaged, or of another version.
        """
        self.path = folder / FILE_NAME
        if not self.path.is_file():
            raise LibraryError(
                f"{folder}: no library here; make one with `slap-fast index {folder} --model MODEL FOLDER`"
            )
        self._lock = threading.RLock()
        self._connection = _connect(self.path, write=write)
        with self._reported():
            self.meta: dict[str, Any] = {
                key: json.loads(value) for key, value in self._connection.execute("SELECT key, value FROM meta")
            }
        if self.meta.get("format") != FORMAT_VERSION:
            raise LibraryError(
                f"{self.path}: format {self.meta.get('format')}, this version reads {FORMAT_VERSION}; index again into "
                "another folder"
            )

    @classmethod
    def create(cls, folder: Path, meta: dict[str, Any]) -> Database:
        """Make an empty database, and open it for writing; it is there complete or not at all.

        Raises:
            LibraryError: there is one already.
            OSError: the folder cannot be written.
        """
        from slap_fast.runtime.durable_files import replace_file_with

        if (folder / FILE_NAME).exists():
            raise LibraryError(f"{folder}: there is a library already")
        folder.mkdir(parents=True, exist_ok=True)

        def write(path: Path) -> None:
            connection = sqlite3.connect(path)
            try:
                connection.executescript(_SCHEMA)
                # The id tells the rows of this library from others' where several are exported to one table.
                entries = {"format": FORMAT_VERSION, "id": secrets.token_hex(8), **meta}.items()
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in entries]
                )
                connection.commit()
            finally:
                connection.close()

        replace_file_with(folder / FILE_NAME, write)
        return cls(folder, write=True)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Writes that are all there or not at all, also after a crash."""
        with self._lock, self._reported(), self._connection:
            yield self._connection

    def set_meta(self, key: str, value: Any) -> None:
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
        self.meta[key] = value

    # Folders

    def folders(self) -> list[str]:
        """Absolute paths of the indexed folders, files and datasets, sorted."""
        return [os.fsdecode(path) for (path,) in self._all("SELECT path FROM folders ORDER BY path")]

    def add_folder(self, path: str) -> None:
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO folders VALUES (?)", (os.fsencode(path),))

    def remove_folder(self, path: str) -> None:
        with self.transaction() as connection:
            connection.execute("DELETE FROM folders WHERE path = ?", (os.fsencode(path),))

    # Recordings

    def recordings(self, *, state: State | None = None) -> list[Recording]:
        """All recordings, or those of one state, in the order of their paths."""
        where = "" if state is None else "WHERE state = ?"
        rows = self._all(
            f"SELECT {_COLUMNS} FROM recordings {where} ORDER BY path, member", () if state is None else (state,)
        )
        return [_recording(row) for row in rows]

    def recordings_of(self, ids: Sequence[int]) -> dict[int, Recording]:
        """The recordings with these ids that exist, by id."""
        rows = self._all(
            f"SELECT {_COLUMNS} FROM recordings WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
        )
        return {row[0]: _recording(row) for row in rows}

    def find(self, path: str, member: str = "") -> Recording | None:
        rows = self._all(
            f"SELECT {_COLUMNS} FROM recordings WHERE path = ? AND member = ?", (os.fsencode(path), member)
        )
        return _recording(rows[0]) if rows else None

    def begin_recording(
        self,
        path: str,
        member: str,
        *,
        size: int,
        mtime_ns: int,
        digest: bytes,
        state: State = "partial",
        reason: str = "",
        detail: str = "",
    ) -> int:
        """Add a recording without windows in place of one at the same path; returns its id."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM recordings WHERE path = ? AND member = ?", (os.fsencode(path), member))
            cursor = connection.execute(
                "INSERT INTO recordings (path, member, size, mtime_ns, digest, seconds, state, reason, detail) "
                "VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)",
                (os.fsencode(path), member, size, mtime_ns, digest, state, reason, detail),
            )
        return int(cursor.lastrowid or 0)

    def add_partial_windows(self, recording: int, windows: Sequence[WindowRow], seconds: float) -> None:
        """Keep the first windows of a recording, whose first `seconds` they cover, until it is complete."""
        with self.transaction() as connection:
            _insert(connection, "partial_windows", recording, windows)
            connection.execute("UPDATE recordings SET seconds = ? WHERE id = ?", (seconds, recording))

    def partial_windows(self, recording: int) -> list[WindowRow]:
        """What `add_partial_windows` kept, in order."""
        rows = self._all(
            "SELECT start, end, whole, embedding FROM partial_windows WHERE recording = ? ORDER BY rowid", (recording,)
        )
        return [WindowRow(start, end, bool(whole), _vector(embedding)) for start, end, whole, embedding in rows]

    def complete_recording(
        self, recording: int, windows: Sequence[WindowRow], *, seconds: float, embedding: np.ndarray
    ) -> None:
        """Add the last windows of a recording and make all of them visible to searches."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO windows (recording, start, end, whole, embedding) SELECT recording, start, end, whole, "
                "embedding FROM partial_windows WHERE recording = ? ORDER BY rowid",
                (recording,),
            )
            connection.execute("DELETE FROM partial_windows WHERE recording = ?", (recording,))
            _insert(connection, "windows", recording, windows)
            connection.execute(
                "UPDATE recordings SET state = 'complete', seconds = ?, embedding = ? WHERE id = ?",
                (seconds, _bytes(embedding), recording),
            )

    def store_recording(
        self,
        path: str,
        member: str,
        windows: Sequence[WindowRow],
        *,
        size: int,
        mtime_ns: int,
        digest: bytes,
        seconds: float,
        embedding: np.ndarray,
    ) -> int:
        """Add a complete recording in place of one at the same path, in one transaction; returns its id."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM recordings WHERE path = ? AND member = ?", (os.fsencode(path), member))
            cursor = connection.execute(
                "INSERT INTO recordings (path, member, size, mtime_ns, digest, seconds, state, reason, detail, "
                "embedding) VALUES (?, ?, ?, ?, ?, ?, 'complete', '', '', ?)",
                (os.fsencode(path), member, size, mtime_ns, digest, seconds, _bytes(embedding)),
            )
            number = int(cursor.lastrowid or 0)
            _insert(connection, "windows", number, windows)
        return number

    def copy_recording(self, recording: int, path: str, member: str, *, size: int, mtime_ns: int) -> int:
        """Add a file with the content of a complete recording, with the same embeddings; returns its id.

        It takes the place of another recording at the same path.
        """
        with self.transaction() as connection:
            connection.execute(
                "DELETE FROM recordings WHERE path = ? AND member = ? AND id != ?",
                (os.fsencode(path), member, recording),
            )
            cursor = connection.execute(
                "INSERT INTO recordings (path, member, size, mtime_ns, digest, seconds, state, reason, detail, "
                "embedding) SELECT ?, ?, ?, ?, digest, seconds, state, '', '', embedding FROM recordings "
                "WHERE id = ? AND state = 'complete'",
                (os.fsencode(path), member, size, mtime_ns, recording),
            )
            number = int(cursor.lastrowid or 0)
            connection.execute(
                "INSERT INTO windows (recording, start, end, whole, embedding) SELECT ?, start, end, whole, embedding "
                "FROM windows WHERE recording = ? ORDER BY id",
                (number, recording),
            )
        return number

    def move_recording(self, recording: int, path: str, member: str, *, size: int, mtime_ns: int) -> None:
        """Give a recording another path, as after a rename, or another modification time; its embeddings stay."""
        with self.transaction() as connection:
            connection.execute(
                "DELETE FROM recordings WHERE path = ? AND member = ? AND id != ?",
                (os.fsencode(path), member, recording),
            )
            connection.execute(
                "UPDATE recordings SET path = ?, member = ?, size = ?, mtime_ns = ? WHERE id = ?",
                (os.fsencode(path), member, size, mtime_ns, recording),
            )

    def remove_recordings(self, ids: Sequence[int]) -> None:
        with self.transaction() as connection:
            connection.executemany("DELETE FROM recordings WHERE id = ?", [(number,) for number in ids])

    # Windows

    def count_windows(self) -> int:
        return int(self._all("SELECT count(*) FROM windows")[0][0])

    def window_recordings(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all windows, ascending, and of their recordings: `[N]` int64 each."""
        rows = self._all("SELECT id, recording FROM windows ORDER BY id")
        pairs = np.array(rows, np.int64).reshape(len(rows), 2)
        return pairs[:, 0].copy(), pairs[:, 1].copy()

    def places(self, ids: Sequence[int]) -> dict[int, WindowPlace]:
        """Where the windows with these ids are; those that no longer exist are left out."""
        rows = self._all(
            "SELECT id, recording, start, end, whole FROM windows WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([int(number) for number in ids]),),
        )
        return {row[0]: WindowPlace(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows}

    def vectors(self, *, after: int = 0, batch: int = 8192) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids `[n]` int64 and embeddings `[n, D]` float32 of the windows with an id above `after`, ascending."""
        while rows := self._all("SELECT id, embedding FROM windows WHERE id > ? ORDER BY id LIMIT ?", (after, batch)):
            after = rows[-1][0]
            matrix = np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(len(rows), -1)
            yield np.array([row[0] for row in rows], np.int64), matrix

    def vectors_of(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """Embeddings `[D]` float32 of the windows with these ids that exist, by id."""
        rows = self._all(
            "SELECT id, embedding FROM windows WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([int(number) for number in ids]),),
        )
        return {row[0]: _vector(row[1]) for row in rows}

    def recording_embeddings(self) -> tuple[list[Recording], np.ndarray]:
        """The complete recordings in the order of their paths, and their own embeddings `[N, D]` float32."""
        rows = self._all(f"SELECT {_COLUMNS}, embedding FROM recordings WHERE state = 'complete' ORDER BY path, member")
        width = int(self.meta["width"])
        matrix = np.frombuffer(b"".join(row[-1] for row in rows), np.float32).reshape(len(rows), width)
        return [_recording(row) for row in rows], matrix

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._reported():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LibraryError(f"{self.path}: {error}") from error


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}", uri=True, timeout=30, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        if write:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error as error:
        raise LibraryError(
            f"{path}: cannot be opened as a library ({error}); index again into another folder"
        ) from error
    return connection


def _insert(connection: sqlite3.Connection, table: str, recording: int, windows: Sequence[WindowRow]) -> None:
    connection.executemany(
        f"INSERT INTO {table} (recording, start, end, whole, embedding) VALUES (?, ?, ?, ?, ?)",
        [(recording, row.start, row.end, int(row.whole), _bytes(row.embedding)) for row in windows],
    )


def _recording(row: Sequence[Any]) -> Recording:
    return Recording(row[0], os.fsdecode(row[1]), *row[2:10])


def _bytes(embedding: np.ndarray) -> bytes:
    return np.ascontiguousarray(embedding, np.float32).tobytes()


def _vector(embedding: bytes) -> np.ndarray:
    return np.frombuffer(embedding, np.float32)
