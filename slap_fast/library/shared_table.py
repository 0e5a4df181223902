"""Shared table: the windows of one or several libraries in LanceDB at a URL, to be searched from any machine.

A library is of one machine: SQLite must not be written over a network file system. `export_library` copies its windows
to a table of LanceDB on object storage (`s3://`, `gs://`, `az://`) or in a folder, and later only what changed. Any
number of libraries of the same model export to one table, each by its id, and any number of machines search it.

Every change is one commit of LanceDB: readers see the table before or after it, and an export that died is finished by
the next one. Credentials are LanceDB's: environment variables such as `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT` and
`AWS_REGION`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slap_fast.errors import MissingExtraError, SlapFastError, one_line
from slap_fast.library.database import Database, Recording
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "windows"
INDEX = "embedding_index"
FORMAT_VERSION = 1
INDEXED_FROM = 100_000  # rows; fewer are searched exactly without an index
ROWS_AT_ONCE = 65_536  # of a commit: 200 MB of embeddings of width 768
# Of an index IVF_RQ: in `benchmarks/vector_stores.py`, they reach a recall@10 of 0.99.
PROBES = 50
REFINED = 20
_MODEL_NAME, _MODEL_WEIGHTS, _FORMAT = b"slap_fast.model", b"slap_fast.weights", b"slap_fast.format"


def table_schema(width: int, model: ModelIdentity) -> pa.Schema:
    """The Arrow schema of a table; its metadata has the model and the version of the format."""
    import pyarrow as pa

    fields: list[tuple[str, pa.DataType]] = [
        ("library", pa.string()),  # id of the library
        ("id", pa.int64()),  # of the window in its library
        ("recording", pa.int64()),  # of the recording in its library
        ("path", pa.binary()),  # absolute, of the file or prepared dataset: the bytes that the file system has
        ("file", pa.string()),  # `path` for people: bytes that are not UTF-8 are replaced by U+FFFD
        ("member", pa.string()),  # key of a clip in the dataset; empty for a file
        ("start", pa.float64()),  # seconds from the start of the recording
        ("end", pa.float64()),
        ("whole", pa.bool_()),  # whether the window is the whole recording
        ("seconds", pa.float64()),  # duration of the recording
        ("size", pa.int64()),  # of the file, bytes
        ("mtime_ns", pa.int64()),
        ("digest", pa.binary()),  # BLAKE2b-128 of the content
        ("model", pa.string()),  # digest of the model's weights
        ("row_digest", pa.int64()),  # of the row's other columns: changed or not
        ("embedding", pa.list_(pa.float32(), width)),  # unit length
    ]
    metadata = {_FORMAT: str(FORMAT_VERSION), _MODEL_NAME: model.name, _MODEL_WEIGHTS: model.weights}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], metadata)


class Exported(NamedTuple):
    """What an export changed, in windows."""

    added: int
    updated: int  # the row has changed: their recording was moved, or a restored library gave their ids out again
    removed: int
    kept: int


@dataclass(frozen=True)
class SharedWindow:
    """A window that a search found.

    Attributes:
        library: id of its library.
        id: of the window in this library.
        recording: of the library's machine; its path is of that machine.
        start: seconds.
        end: seconds.
        whole: whether it is the whole recording.
        score: inner product of query and embedding.
    """

    library: str
    id: int
    recording: Recording
    start: float
    end: float
    whole: bool
    score: float


class SharedTable:
    """A table at a URL, opened for searching. A commit of another process is seen after at most five seconds."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of the LanceDB database: `s3://bucket/sounds`, `gs://`, `az://`, or a folder.

        Raises:
            LibraryError: there is no table, it is of another version, or the storage cannot be reached.
            MissingExtraError: lancedb is not installed.
        """
        self.url = url
        local = url.removeprefix("file://")
        if "://" not in local and not (Path(local) / f"{TABLE}.lance").is_dir():  # LanceDB would make the folder
            raise LibraryError(f"{url}: {_no_table(url)}")
        with _reported(url):
            opened = _open(_connect(url))
        if opened is None:
            raise LibraryError(f"{url}: {_no_table(url)}")
        self._table = opened
        schema = opened.schema
        self.identity = _identity(url, schema)
        self._columns = [name for name in schema.names if name != "embedding"]
        self.width = int(schema.field("embedding").type.list_size)

    def __len__(self) -> int:
        """Number of windows."""
        with _reported(self.url):
            return int(self._table.count_rows())

    def has(self, where: str) -> bool:
        """Whether a window meets a condition, as of `search`."""
        with _reported(self.url):
            return bool(self._table.search().where(where).select(["id"]).limit(1).to_arrow().num_rows)

    def search(
        self, query: np.ndarray, count: int, *, where: str | None = None, probes: int = PROBES, refined: int = REFINED
    ) -> list[SharedWindow]:
        """The `count` windows most similar to `query` `[D]` float32, best first.

        Args:
            where: condition in SQL on the columns of `table_schema`, such as `seconds < 30`; it is applied first, so
                that `count` windows are found if there are as many.
            probes: partitions of the index to look into.
            refined: compare the embeddings of `refined * count` candidates exactly.

        Raises:
            LibraryError: the condition is invalid, or the storage cannot be reached.
        """
        if query.shape != (self.width,):
            raise ValueError(f"query has shape {list(query.shape)}; the table has embeddings of shape [{self.width}]")
        with _reported(self.url):
            found = self._table.search(np.ascontiguousarray(query, np.float32), vector_column_name="embedding")
            found = found.distance_type("dot").nprobes(probes).refine_factor(refined).limit(count)
            if where is not None:
                found = found.where(where, prefilter=True)
            rows = found.select([*self._columns, "_distance"]).to_arrow().to_pylist()
        # LanceDB's distance of the inner product is 1 minus it.
        return sorted((_window(row, 1.0 - row["_distance"]) for row in rows), key=_best_first)

    def near(self, query: np.ndarray, library: str, recording: int, start: float, end: float) -> list[SharedWindow]:
        """The windows of a recording that overlap `start` to `end` seconds, in order of their start, with their scores.

        Args:
            query: `[D]` float32.
            library: id of the library.
            recording: id of the recording in it.

        Raises:
            LibraryError: the storage cannot be reached.
        """
        place = f"recording = {recording} AND library = '{library}' AND start < {end!r} AND \"end\" > {start!r}"
        with _reported(self.url):
            rows = self._table.search().where(place).select([*self._columns, "embedding"]).to_arrow().to_pylist()
        found = [_window(row, float(np.array(row["embedding"], np.float32) @ query)) for row in rows]
        return sorted(found, key=lambda window: (window.start, window.end, window.id))


def export_library(database: Database, url: str) -> Exported:
    """Make the table at `url` hold the windows of a library: adds what is new, removes what is gone.

    Args:
        database: of the library.
        url: as of `SharedTable`; the table is made if there is none. Rows of other libraries are left alone.

    Raises:
        LibraryError: the table is of another model or version, or the storage cannot be written; what was committed
            stays, and the next export goes on.
        MissingExtraError: lancedb is not installed.
    """
    identity, library = ModelIdentity.from_meta(database.meta), str(database.meta["id"])
    with _reported(url):
        table = _table_for_writing(url, int(database.meta["width"]), identity)
        mine = f"library = '{library}'"
        stored_ids, stored_digests = _stored(table, mine)
        with database.snapshot():
            ids, recording_ids = database.window_recordings()
            digests = _row_digests(database, ids, recording_ids)
        gone = stored_ids[~np.isin(stored_ids, ids)]
        for some in _chunks(gone):
            table.delete(f"{mine} AND id IN ({', '.join(map(str, some.tolist()))})")
        # Of a window that the table has, the digest that it has; windows are written in the order of their ids.
        place = np.searchsorted(stored_ids, ids)
        known = np.isin(ids, stored_ids)
        same = known.copy()
        same[known] = stored_digests[place[known]] == digests[known]
        schema = table.schema
        for batch in _batches(database, ids[~same], digests[~same], schema, library, identity):
            # Not `add`: the rows of two exports of one library at the same time are the same rows.
            writer = table.merge_insert(["library", "id"]).when_matched_update_all().when_not_matched_insert_all()
            writer.execute(batch)
        if len(gone) or not same.all():
            _optimize(table)
    return Exported(int((~known).sum()), int((known & ~same).sum()), len(gone), int(same.sum()))


def _table_for_writing(url: str, width: int, identity: ModelIdentity) -> Any:
    database = _connect(url)
    found = _open(database)
    if found is None:
        try:
            found = database.create_table(TABLE, schema=table_schema(width, identity), exist_ok=True)
        except ValueError:  # another export made it just now, with another name of the model, or another model
            if (found := _open(database)) is None:
                raise
    stored = _identity(url, found.schema)
    if stored.weights != identity.weights:
        raise LibraryError(
            f"{url}: its embeddings are of the model {stored.name} ({stored.weights}), not of {identity.name} "
            f"({identity.weights}), and cannot be compared; export to another URL"
        )
    return found


def _stored(table: Any, mine: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and row digests of the rows of a library."""
    found = table.search().where(mine).select(["id", "row_digest"]).to_arrow()
    ids, digests = (found.column(name).to_numpy().astype(np.int64) for name in ("id", "row_digest"))
    order = np.argsort(ids, kind="stable")
    return ids[order], digests[order]


def _row_digests(database: Database, ids: np.ndarray, recording_ids: np.ndarray) -> np.ndarray:
    """Of each window, the digest of its row, `[N]` int64.

    A library that was restored from a backup gives the ids of windows and recordings out again, so what is the same has
    the same place in the same recording, not only the same id.
    """
    known = {row.id: _recording_digest(row) for row in database.recordings(state="complete")}
    digests = np.empty(len(ids), np.int64)
    for begin in range(0, len(ids), ROWS_AT_ONCE):
        some = ids[begin : begin + ROWS_AT_ONCE].tolist()
        places = database.places(some)
        spans = np.array([(places[number].start, places[number].end) for number in some], np.float64)
        mixed = np.array([known[number] for number in recording_ids[begin : begin + ROWS_AT_ONCE].tolist()], np.int64)
        mixed = mixed.view(np.uint64)
        for column in spans.view(np.uint64).T:  # the multiplier of MurmurHash's last step spreads each bit over all
            mixed = (mixed ^ column) * np.uint64(0xFF51AFD7ED558CCD)
            mixed ^= mixed >> np.uint64(33)
        digests[begin : begin + ROWS_AT_ONCE] = mixed.view(np.int64)
    return digests


def _recording_digest(recording: Recording) -> int:
    parts = (recording.id, recording.size, recording.mtime_ns, recording.seconds, recording.digest.hex())
    text = f"{'/'.join(map(str, parts))}/{len(recording.member)}/{recording.member}".encode()
    digest = hashlib.blake2b(text + os.fsencode(recording.path), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _batches(
    database: Database,
    ids: np.ndarray,
    digests: np.ndarray,
    schema: pa.Schema,
    library: str,
    identity: ModelIdentity,
) -> Iterator[pa.Table]:
    """The rows of the windows `ids`, ascending, with their digests; those that were removed meanwhile are left out."""
    import pyarrow as pa

    for wanted in _chunks(ids):
        with database.snapshot():
            present, matrix = database.matrix_of(wanted)
            places = database.places(present.tolist())
            recordings = database.recordings_of(sorted({place.recording for place in places.values()}))
        if not len(present):
            continue
        rows = [places[number] for number in present.tolist()]
        whose = [recordings[place.recording] for place in rows]
        paths = [os.fsencode(recording.path) for recording in whose]
        columns: dict[str, Any] = {
            "library": [library] * len(rows),
            "id": [place.id for place in rows],
            "recording": [place.recording for place in rows],
            "path": paths,
            "file": [path.decode("utf-8", "replace") for path in paths],
            "member": [recording.member for recording in whose],
            "start": [place.start for place in rows],
            "end": [place.end for place in rows],
            "whole": [place.whole for place in rows],
            "seconds": [recording.seconds for recording in whose],
            "size": [recording.size for recording in whose],
            "mtime_ns": [recording.mtime_ns for recording in whose],
            "digest": [recording.digest for recording in whose],
            "model": [identity.weights] * len(rows),
            "row_digest": digests[np.searchsorted(ids, present)].tolist(),
        }
        arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names[:-1]]
        width = schema.field("embedding").type.list_size
        yield pa.Table.from_arrays([*arrays, pa.FixedSizeListArray.from_arrays(matrix.ravel(), width)], schema=schema)


def _optimize(table: Any) -> None:
    """Compact small files, bring the index up to date, and make it when the table has become large."""
    table.optimize(cleanup_older_than=timedelta(days=1))
    if table.count_rows() >= INDEXED_FROM and INDEX not in {index.name for index in table.list_indices()}:
        from lancedb.index import BTree, IvfRq

        table.create_index("embedding", config=IvfRq(distance_type="dot"), name=INDEX)
        table.create_index("recording", config=BTree())


def _window(row: dict[str, Any], score: float) -> SharedWindow:
    recording = Recording(
        id=row["recording"],
        path=os.fsdecode(row["path"]),
        member=row["member"],
        size=row["size"],
        mtime_ns=row["mtime_ns"],
        digest=row["digest"],
        seconds=row["seconds"],
        state="complete",
    )
    return SharedWindow(row["library"], row["id"], recording, row["start"], row["end"], row["whole"], score)


def _best_first(window: SharedWindow) -> tuple[float, str, int]:
    return -window.score, window.library, window.id


def _chunks(ids: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(ids), ROWS_AT_ONCE):
        yield ids[begin : begin + ROWS_AT_ONCE]


def _connect(url: str) -> Any:
    os.environ.setdefault("LANCE_LOG", "error")  # its warnings concern its own developers
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError(
            f'{url}: a table at a URL needs lancedb, which is not installed; pip install "slap-fast[lancedb]"'
        ) from error
    return lancedb.connect(url, read_consistency_interval=timedelta(seconds=5))


def _open(database: Any) -> Any | None:
    """The table, or None if there is none."""
    try:
        return database.open_table(TABLE)
    except ValueError as error:  # LanceDB's error of everything else, too
        if "was not found" in str(error):
            return None
        raise


def _identity(url: str, schema: pa.Schema) -> ModelIdentity:
    metadata = {key: value.decode() for key, value in (schema.metadata or {}).items()}
    if metadata.get(_FORMAT) != str(FORMAT_VERSION):
        raise LibraryError(
            f"{url}: its table `{TABLE}` is of format {metadata.get(_FORMAT, 'unknown')}, this version reads "
            f"{FORMAT_VERSION}; export to another URL"
        )
    return ModelIdentity(metadata[_MODEL_NAME], metadata[_MODEL_WEIGHTS])


def _no_table(url: str) -> str:
    return f"no table `{TABLE}` here; export a library first: slap-fast export LIBRARY --lancedb {shlex.quote(url)}"


@contextmanager
def _reported(url: str) -> Iterator[None]:
    """LanceDB raises errors of Python's own types, with the messages of its Rust core."""
    try:
        yield
    except SlapFastError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        # Its messages end with the place in its source.
        message = re.sub(r",?\s*\S*/\.cargo/\S*", "", one_line(error, 1_000))
        raise LibraryError(
            f"{url}: LanceDB: {message}; check the URL, the network and the credentials in the environment"
        ) from error
