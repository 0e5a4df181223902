"""Library database: recordings and the embeddings of their windows, in one SQLite file.

SQLite is the only truth of a library. What makes a search fast (`vectors/`, `text/`) is derived from it and can be
deleted. A write-ahead log lets any number of processes read while one writes, and a transaction is whole or absent
after a crash. Embeddings of a recording that is not embedded to its end are in a table of their own, where no search
sees them. How a damaged, read-only or replaced file is told apart is in `database_file.py`.
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

from slap_fast.library.database_file import LOG_BYTES, PAGE_BYTES, DatabaseFile, explain
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
    file TEXT NOT NULL,                  -- the path for people: a byte ff that is not UTF-8 as \\udcff
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
CREATE INDEX recordings_by_seconds ON recordings (state, seconds);
CREATE TABLE windows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- ascending, never used again
    recording INTEGER NOT NULL REFERENCES recordings (id) ON DELETE CASCADE,
    start REAL NOT NULL,                 -- seconds
    end REAL NOT NULL,
    whole INTEGER NOT NULL,              -- 1 for the embedding of a whole recording
    embedding BLOB NOT NULL              -- [D] float32, unit length
);
CREATE INDEX windows_by_recording ON windows (recording, start, end, whole); -- without reading embeddings
CREATE TABLE partial_windows (
    recording INTEGER NOT NULL REFERENCES recordings (id) ON DELETE CASCADE,
    start REAL NOT NULL, end REAL NOT NULL, whole INTEGER NOT NULL, embedding BLOB NOT NULL
);
CREATE INDEX partial_windows_by_recording ON partial_windows (recording);
CREATE VIEW rows AS
    SELECT windows.id, file, member, start, end, whole, windows.embedding, seconds AS duration,
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


def stored_mtime(status: os.stat_result) -> int:
    """The modification time of a file in nanoseconds, at most the largest integer of SQLite: the year 2262."""
    return min(status.st_mtime_ns, 2**63 - 1)


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


_OUTER = ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
_COLUMNS = "id, path, member, size, mtime_ns, digest, seconds, state, reason, detail"


class Database:
    """The SQLite file of a library. Safe to share between threads. Close it, or use it as a context manager.

    Any number of processes may have it open. One of them may write: that is for `LIBRARY/lock` to see to.
    """

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        """Open an existing database.

        Raises:
            LibraryError: there is none, it is damaged or of another version, or it cannot be opened as it is.
        """
        self.path = folder / FILE_NAME
        self._lock = threading.RLock()
        self._nested = 0  # transactions of the thread that has the lock
        self._snapshots = 0
        self._file = DatabaseFile(self.path, write=write)
        self._connection = self._file.connect()
        try:
            self.meta: dict[str, Any] = self._read_meta()
        except BaseException:
            self._connection.close()
            raise

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
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.executescript(_SCHEMA)
                # The id tells the rows of this library from others' where several are exported to one table.
                entries = {"format": FORMAT_VERSION, "id": secrets.token_hex(8), **meta}.items()
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in entries]
                )
                connection.commit()
            finally:
                connection.close()

        try:
            replace_file_with(folder / FILE_NAME, write)
        except sqlite3.Error as error:
            raise explain(folder / FILE_NAME, error) from error
        return cls(folder, write=True)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was written moves from the write-ahead log into the file, if no other process reads."""
        with self._lock:
            self._file.close(self._connection)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Writes that are all there or not at all, also after a crash.

        Nested ones are part of the outermost: so a batch of recordings is written at once. One that fails takes back
        its own writes alone, if the error is caught inside the outer one.

        Raises:
            LibraryError: the disk is full, the library is read-only, was deleted, or another process writes; nothing of
                the transaction is written then.
        """
        with self._lock, self._reported():
            if self._snapshots:
                raise RuntimeError("a snapshot reads one state: write after it")
            begin, end, undo = ("SAVEPOINT inner", "RELEASE inner", "ROLLBACK TO inner") if self._nested else _OUTER
            if not self._nested:
                self._file.check_unmoved()
            self._connection.execute(begin)
            self._nested += 1
            try:
                yield self._connection
                self._connection.execute(end)
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it
                    self._connection.execute(undo)
                    if undo != _OUTER[2]:
                        self._connection.execute(end)
                raise
            finally:
                self._nested -= 1
            if not self._nested:
                self._file.empty_log(self._connection, above=LOG_BYTES)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads that see one state of the library, whatever another process writes meanwhile.

        Keep it short: other threads wait, and the write-ahead log cannot be emptied.
        """
        with self._lock, self._reported():
            begun = not self._connection.in_transaction
            if begun:
                self._file.check_unmoved()
                self._connection.execute("BEGIN")
                self._snapshots += 1
            try:
                yield
            finally:
                if begun:
                    self._snapshots -= 1
                    if self._connection.in_transaction:  # a failing drive may have ended it
                        self._connection.execute("ROLLBACK")

    def reclaim(self, *, least_share: float) -> None:
        """Write the file again without the pages of what was removed, which keep their content until they are used.

        Takes time and free disk space for what remains.

        Args:
            least_share: of the pages that must be free; with fewer, nothing is done.

        Raises:
            LibraryError: the disk is full, or another process writes; the file is as it was.
        """
        free, pages = (int(self._all(f"PRAGMA {name}")[0][0]) for name in ("freelist_count", "page_count"))
        if free < least_share * pages:
            return
        self._all("VACUUM")
        with self._lock, self._reported():
            self._file.empty_log(self._connection, above=0)

    def check(self) -> list[str]:
        """What `PRAGMA quick_check` finds wrong with the file; it reads all of it. Empty: it is sound."""
        try:
            found = [str(row[0]) for row in self._all("PRAGMA quick_check")]
        except LibraryError as error:
            return [str(error)]
        return [] if found == ["ok"] else found

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
        if _readable(member) != member:
            return None  # a key of a dataset is valid text
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
                "INSERT INTO recordings (path, file, member, size, mtime_ns, digest, seconds, state, reason, detail) "
                "VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
                (
                    os.fsencode(path),
                    _readable(path),
                    member,
                    size,
                    mtime_ns,
                    digest,
                    state,
                    _readable(reason),
                    _readable(detail),
                ),
            )
        return int(cursor.lastrowid or 0)

    def add_partial_windows(self, recording: int, windows: Sequence[WindowRow], seconds: float) -> None:
        """Keep the first windows of a recording, whose first `seconds` they cover, until it is complete."""
        rows = self._checked(recording, windows)
        with self.transaction() as connection:
            _insert(connection, "partial_windows", rows)
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
        """Add the last windows of a recording and make all of them visible to searches.

        Raises:
            LibraryError: an embedding has another width than the library's, or is not finite; nothing is written.
        """
        rows = self._checked(recording, windows)
        whole = self._checked_bytes(embedding, f"recording {recording}")
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO windows (recording, start, end, whole, embedding) SELECT recording, start, end, whole, "
                "embedding FROM partial_windows WHERE recording = ? ORDER BY rowid",
                (recording,),
            )
            connection.execute("DELETE FROM partial_windows WHERE recording = ?", (recording,))
            _insert(connection, "windows", rows)
            connection.execute(
                "UPDATE recordings SET state = 'complete', seconds = ?, embedding = ? WHERE id = ?",
                (seconds, whole, recording),
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
        """Add a complete recording in place of one at the same path, in one transaction; returns its id.

        Raises:
            LibraryError: as of `complete_recording`.
        """
        with self.transaction():
            number = self.begin_recording(path, member, size=size, mtime_ns=mtime_ns, digest=digest)
            self.complete_recording(number, windows, seconds=seconds, embedding=embedding)
        return number

    def copy_recording(self, recording: int, path: str, member: str, *, size: int, mtime_ns: int) -> int:
        """Add a file with the content of a complete recording, with the same embeddings; returns its id.

        It takes the place of another recording at the same path.

        Raises:
            LibraryError: there is no such complete recording; nothing is written.
        """
        with self.transaction() as connection:
            connection.execute(
                "DELETE FROM recordings WHERE path = ? AND member = ? AND id != ?",
                (os.fsencode(path), member, recording),
            )
            cursor = connection.execute(
                "INSERT INTO recordings (path, file, member, size, mtime_ns, digest, seconds, state, reason, detail, "
                "embedding) SELECT ?, ?, ?, ?, ?, digest, seconds, state, '', '', embedding FROM recordings "
                "WHERE id = ? AND state = 'complete'",
                (os.fsencode(path), _readable(path), member, size, mtime_ns, recording),
            )
            if not cursor.rowcount:
                raise LibraryError(
                    f"{self.path}: recording {recording}, of which {path} is a copy, is not there or not complete any "
                    "more; run the same command again"
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
                "UPDATE recordings SET path = ?, file = ?, member = ?, size = ?, mtime_ns = ? WHERE id = ?",
                (os.fsencode(path), _readable(path), member, size, mtime_ns, recording),
            )

    def recordings_below(self, path: str) -> np.ndarray:
        """Ids of the complete recordings that a name means, `[N]` int64, ascending.

        Args:
            path: an absolute path: a recording, a prepared dataset, or a folder, with all below it (`/a/b` has
                `/a/b/c.wav`, not `/a/bc.wav`); or `path#key`, a clip of a prepared dataset.
        """
        name = os.fsencode(path)
        inside = name.rstrip(b"/") + b"/"
        found = [
            self._all(
                "SELECT id FROM recordings WHERE path >= ? AND path < ? AND state = 'complete'",
                (inside, inside[:-1] + b"0"),  # the character after the slash
            ),
            self._all("SELECT id FROM recordings WHERE path = ? AND state = 'complete'", (name.rstrip(b"/") or b"/",)),
        ]
        # Both a path and a key may have a #, so each one is tried.
        for position in (position for position, character in enumerate(path) if character == "#"):
            recording = self.find(path[:position], path[position + 1 :]) if path[position + 1 :] else None
            if recording is not None and recording.state == "complete":
                found.append([(recording.id,)])
        return np.unique(np.array([row[0] for rows in found for row in rows], np.int64))

    def remove_recordings(self, ids: Sequence[int]) -> None:
        with self.transaction() as connection:
            connection.executemany("DELETE FROM recordings WHERE id = ?", [(number,) for number in ids])

    # Windows

    def count_windows(self) -> int:
        return int(self._all("SELECT count(*) FROM windows")[0][0])

    def last_window(self) -> int:
        """Highest id of a window; 0 if there is none."""
        return int(self._all("SELECT coalesce(max(id), 0) FROM windows")[0][0])

    def last_window_ever(self) -> int:
        """Highest id that a window ever had, also one that was removed; 0 if there never was one."""
        return int(self._all("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'windows'")[0][0])

    def window_recordings(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all windows, ascending, and of their recordings: `[N]` int64 each."""
        return self._windows_of_recordings("")

    def window_ids(
        self, *, below: Sequence[str] = (), min_seconds: float | None = None, max_seconds: float | None = None
    ) -> np.ndarray:
        """Ids of the windows of some recordings, `[N]` int64, ascending: those that pass each filter that is given.

        Args:
            below: names as of `recordings_below`; a recording passes with one of them. Empty: all pass.
            min_seconds: least duration of the recording.
            max_seconds: greatest duration of the recording.

        Raises:
            LibraryError: a name of `below` means no recording that can be searched.
        """
        with self.snapshot():
            where: list[str] = []
            values: list[Any] = []
            if min_seconds is not None or max_seconds is not None:
                where.append(
                    "recording IN (SELECT id FROM recordings WHERE state = 'complete' AND seconds BETWEEN ? AND ?)"
                )
                values += [0.0 if min_seconds is None else min_seconds, 9e99 if max_seconds is None else max_seconds]
            if below:
                found = [self.recordings_below(name) for name in below]
                for name, ids in zip(below, found, strict=True):
                    if not len(ids):
                        known = ", ".join(_readable(folder) for folder in self.folders()[:5])
                        raise LibraryError(f"{name}: the library has no recording there; it has {known or 'none yet'}")
                where.append("recording IN (SELECT value FROM json_each(?))")
                values.append(json.dumps(np.unique(np.concatenate(found)).tolist()))
            return self._windows_of_recordings(f"WHERE {' AND '.join(where)}" if where else "", values)[0]

    def windows_near(self, recording: int, start: float, end: float) -> list[WindowPlace]:
        """The windows of a recording that overlap `start` to `end` seconds, in order of their start; wholes too."""
        rows = self._all(
            "SELECT id, recording, start, end, whole FROM windows "
            "WHERE recording = ? AND start < ? AND end > ? ORDER BY start, end, id",
            (recording, end, start),
        )
        return [WindowPlace(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def _windows_of_recordings(self, where: str, values: Sequence[Any] = ()) -> tuple[np.ndarray, np.ndarray]:
        # The windows of a recording are inserted in one transaction, so their ids follow each other: a row for each
        # recording, not for each window, makes this ten times as fast. The index has what is read; the rows are large.
        rows = self._all(
            "SELECT recording, min(id), max(id), count(*) FROM windows INDEXED BY windows_by_recording "
            f"{where} GROUP BY recording",
            values,
        )
        spans = np.array(rows, np.int64).reshape(len(rows), 4)
        spans = spans[np.argsort(spans[:, 1])]
        recordings, first, last, count = spans.T
        if (last - first + 1 != count).any():  # of another writer than this class
            return self._scattered_windows(recordings)
        offset = np.cumsum(count) - count
        ids = np.arange(count.sum(), dtype=np.int64) + np.repeat(first - offset, count)
        return ids, np.repeat(recordings, count)

    def _scattered_windows(self, recordings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self._all(
            "SELECT id, recording FROM windows INDEXED BY windows_by_recording "
            "WHERE recording IN (SELECT value FROM json_each(?))",
            (json.dumps(recordings.tolist()),),
        )
        pairs = np.array(sorted(rows), np.int64).reshape(len(rows), 2)
        return pairs[:, 0].copy(), pairs[:, 1].copy()

    def places(self, ids: Sequence[int]) -> dict[int, WindowPlace]:
        """Where the windows with these ids are; those that no longer exist are left out."""
        rows = self._all(
            "SELECT id, recording, start, end, whole FROM windows WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([int(number) for number in ids]),),
        )
        return {row[0]: WindowPlace(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows}

    def vectors(
        self, *, after: int = 0, until: int | None = None, batch: int = 4096
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids `[n]` int64 and embeddings `[n, D]` float32 of the windows with an id above `after`, ascending.

        Args:
            until: highest id; None: all.
            batch: windows in memory at a time.
        """
        last = (1 << 63) - 1 if until is None else until
        while rows := self._all(
            "SELECT id, embedding FROM windows WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (after, last, batch)
        ):
            after = rows[-1][0]
            yield np.array([row[0] for row in rows], np.int64), self._matrix([row[1] for row in rows])

    def vectors_of(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """Embeddings `[D]` float32 of the windows with these ids that exist, by id."""
        found, matrix = self.matrix_of(np.unique(np.array(ids, np.int64)))
        return dict(zip(found.tolist(), matrix, strict=True))

    def matrix_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the windows with these ids those that exist: their ids `[n]` int64 and embeddings `[n, D]` float32.

        Args:
            ids: `[M]` int64, ascending.
        """
        rows = self._all(
            "SELECT id, embedding FROM windows WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps(ids.tolist()),),
        )
        return np.array([row[0] for row in rows], np.int64), self._matrix([row[1] for row in rows])

    def recording_embeddings(self) -> tuple[list[Recording], np.ndarray]:
        """The complete recordings in the order of their paths, and their own embeddings `[N, D]` float32."""
        rows = self._all(f"SELECT {_COLUMNS}, embedding FROM recordings WHERE state = 'complete' ORDER BY path, member")
        return [_recording(row) for row in rows], self._matrix([row[-1] for row in rows])

    def _matrix(self, embeddings: Sequence[bytes]) -> np.ndarray:
        """`[N, D]` float32 of the bytes of N embeddings."""
        width = int(self.meta["width"])
        if any(len(embedding) != 4 * width for embedding in embeddings):
            raise explain(self.path, sqlite3.DatabaseError(f"malformed: an embedding is not of {width} numbers"))
        return np.frombuffer(b"".join(embeddings), np.float32).reshape(len(embeddings), width)

    def _checked(self, recording: int, windows: Sequence[WindowRow]) -> list[tuple[int, float, float, int, bytes]]:
        """The rows of windows, if all can be searched."""
        rows = []
        for row in windows:
            if not (0 <= row.start < row.end < float("inf")):
                raise LibraryError(f"window {row.start} to {row.end} s of recording {recording}: it has no duration")
            place = f"window {row.start} to {row.end} s of recording {recording}"
            rows.append((recording, row.start, row.end, int(row.whole), self._checked_bytes(row.embedding, place)))
        return rows

    def _checked_bytes(self, embedding: np.ndarray, place: str) -> bytes:
        values = np.ascontiguousarray(embedding, np.float32)
        if values.shape != (int(self.meta["width"]),):
            raise LibraryError(
                f"{place}: an embedding of shape {list(values.shape)} for a library of width {self.meta['width']}; "
                "embed it with the model of the library"
            )
        if not np.isfinite(values).all():
            raise LibraryError(f"{place}: its embedding is not finite; check the weights of the model")
        return values.tobytes()

    def _read_meta(self) -> dict[str, Any]:
        rows = self._all("SELECT key, value FROM meta")
        try:
            meta = {key: json.loads(value) for key, value in rows}
        except ValueError as error:
            raise explain(self.path, sqlite3.DatabaseError(f"malformed: {error}")) from error
        found = meta.get("format")
        if found != FORMAT_VERSION:
            newer = isinstance(found, int) and found > FORMAT_VERSION
            raise LibraryError(
                f"{self.path}: its format is {found}, and this version of slap-fast reads {FORMAT_VERSION}; "
                + ("update slap-fast, or " if newer else "")
                + "index again into another folder"
            )
        return meta

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._reported():
            if not self._connection.in_transaction:
                self._file.check_unmoved()
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explain(self.path, error) from error
        except UnicodeEncodeError as error:
            raise LibraryError(f"{self.path}: {error.object!r} is not valid text, as a key of a dataset is") from error


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[int, float, float, int, bytes]]) -> None:
    connection.executemany(
        f"INSERT INTO {table} (recording, start, end, whole, embedding) VALUES (?, ?, ?, ?, ?)", rows
    )


def _readable(text: str) -> str:
    """Text that SQLite takes: bytes of a file name that are not UTF-8 as backslash and code."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _recording(row: Sequence[Any]) -> Recording:
    return Recording(row[0], os.fsdecode(row[1]), *row[2:10])


def _vector(embedding: bytes) -> np.ndarray:
    return np.frombuffer(embedding, np.float32)
