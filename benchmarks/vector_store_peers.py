"""The stores of `benchmarks.vector_stores`: one interface over the sound library and LanceDB.

A store holds windows by key, an int64. All of them store what a library needs to show a result: file, start and end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.library_vectors import WINDOWS_OF_RECORDING, Vectors

INSERTED_AT_ONCE = 65_000  # windows, in a bulk insert: whole recordings
HOP, WINDOW = 5.0, 10.0  # seconds


class Found(NamedTuple):
    """Keys `[K]` int64 and scores `[K]` float32 of the windows found, best first."""

    keys: np.ndarray
    scores: np.ndarray


class Setting(NamedTuple):
    """How thoroughly a store searches; None: its default."""

    probes: int
    refined: int

    def __str__(self) -> str:
        return f"nprobes {self.probes}, refine_factor {self.refined}"


class Store(Protocol):
    """An open store. Keys of the first `insert` into an empty store are 0, 1, 2, ..., in the order of the rows."""

    def insert(self, first: int, matrix: np.ndarray) -> None:
        """Commit windows `[n, D]` float32 with the keys `first`, `first + 1`, ...: whole recordings."""

    def build_index(self) -> None:
        """Make the index of all windows."""

    def update_index(self) -> None:
        """What the store does after changes, so that its index has them."""

    def search(self, query: np.ndarray, count: int, setting: Setting | None = None) -> Found:
        """The windows most similar to `[D]` float32, of all that are committed."""

    def replace(self, recordings: Sequence[int], matrix: np.ndarray) -> None:
        """Commit new windows in place of those of `recordings`: their number is the key of a window divided by 20."""

    def remove(self, recordings: Sequence[int]) -> None:
        """Commit the removal of recordings."""

    def keys(self) -> np.ndarray:
        """The keys of all committed windows, `[N]` int64; a key that is stored twice is there twice."""


class SoundLibrary:
    """Our `Database` and `VectorIndex`."""

    def __init__(self, folder: Path, width: int) -> None:
        from slap_fast.library.database import FILE_NAME, Database
        from slap_fast.library.vector_index import VectorIndex

        self._width = width
        exists = (folder / FILE_NAME).exists()
        self._database = (
            Database(folder, write=True) if exists else Database.create(folder, {"width": width, "model": _MODEL})
        )
        self._index = VectorIndex(self._database)

    def insert(self, first: int, matrix: np.ndarray) -> None:
        if first % WINDOWS_OF_RECORDING:
            raise ValueError(f"first is {first}; recordings have {WINDOWS_OF_RECORDING} windows")
        for row in range(0, len(matrix), WINDOWS_OF_RECORDING):
            self._add((first + row) // WINDOWS_OF_RECORDING, matrix[row : row + WINDOWS_OF_RECORDING])

    def build_index(self) -> None:
        from slap_fast.library.vector_index import build

        # As `Library.add` does with its vocabulary, which has about as many texts.
        build(self._database, queries=lambda: Vectors(self._width).vocabulary(400))

    def update_index(self) -> None:
        self.build_index()

    def search(self, query: np.ndarray, count: int, setting: Setting | None = None) -> Found:
        found = self._index.search(query, count)
        places = self._database.places(found.ids.tolist())
        recordings = self._database.recordings_of([place.recording for place in places.values()])
        # As in a search of the library: a window that was removed meanwhile is left out.
        kept = [(places[n], score) for n, score in zip(found.ids.tolist(), found.scores, strict=True) if n in places]
        keys = [_key(recordings[place.recording].path, place.start) for place, _ in kept]
        return Found(np.array(keys, np.int64), np.array([score for _, score in kept], np.float32))

    def replace(self, recordings: Sequence[int], matrix: np.ndarray) -> None:
        for place, recording in enumerate(recordings):
            self._add(recording, matrix[place * WINDOWS_OF_RECORDING : (place + 1) * WINDOWS_OF_RECORDING])

    def remove(self, recordings: Sequence[int]) -> None:
        found = [self._database.find(_file(recording)) for recording in recordings]
        self._database.remove_recordings([row.id for row in found if row is not None])

    def keys(self) -> np.ndarray:
        ids, whose = self._database.window_recordings()
        paths = {row.id: row.path for row in self._database.recordings(state="complete")}
        places = self._database.places(ids.tolist())
        pairs = zip(ids.tolist(), whose.tolist(), strict=True)
        return np.array([_key(paths[recording], places[window].start) for window, recording in pairs], np.int64)

    def _add(self, recording: int, matrix: np.ndarray) -> None:
        from slap_fast.library.database import WindowRow

        seconds = HOP * (len(matrix) - 1) + WINDOW
        number = self._database.begin_recording(_file(recording), "", size=0, mtime_ns=0, digest=bytes(16))
        rows = [WindowRow(HOP * row, HOP * row + WINDOW, False, embedding) for row, embedding in enumerate(matrix)]
        self._database.complete_recording(number, rows, seconds=seconds, embedding=matrix[0])


class Lance:
    """LanceDB with one of its indexes, by the configuration that its manual begins with."""

    def __init__(self, folder: Path, width: int, index: str) -> None:
        os.environ.setdefault("LANCE_LOG", "error")
        import lancedb
        import pyarrow as pa

        self._index, self._width = index, width
        kinds = {"key": pa.int64(), "file": pa.string(), "start": pa.float64(), "end": pa.float64()}
        self._schema = pa.schema([*kinds.items(), ("embedding", pa.list_(pa.float32(), width))])
        database = lancedb.connect(folder)
        # LanceDB's types know less than the objects.
        self._table: Any = database.create_table("windows", schema=self._schema, exist_ok=True)

    def insert(self, first: int, matrix: np.ndarray) -> None:
        self._table.add(self._rows(np.arange(first, first + len(matrix)), matrix))

    def build_index(self) -> None:
        import lancedb.index

        self._table.optimize()
        self._table.create_index("embedding", config=getattr(lancedb.index, self._index)(distance_type="dot"))
        self._table.create_index("key", config=lancedb.index.BTree())

    def update_index(self) -> None:
        self._table.optimize()

    def search(self, query: np.ndarray, count: int, setting: Setting | None = None) -> Found:
        found = self._table.search(query, vector_column_name="embedding").distance_type("dot").limit(count)
        if setting is not None:
            found = found.nprobes(setting.probes).refine_factor(setting.refined)
        rows = found.select(["key", "file", "start", "end", "_distance"]).to_arrow()
        return Found(rows["key"].to_numpy(), 1 - rows["_distance"].to_numpy())

    def replace(self, recordings: Sequence[int], matrix: np.ndarray) -> None:
        rows = self._rows(np.array(_keys(recordings)), matrix)
        self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def remove(self, recordings: Sequence[int]) -> None:
        self._table.delete(f"key IN ({', '.join(map(str, _keys(recordings)))})")

    def keys(self) -> np.ndarray:
        return self._table.search().select(["key"]).to_arrow()["key"].to_numpy()

    def _rows(self, keys: np.ndarray, matrix: np.ndarray) -> Any:
        import pyarrow as pa

        starts = HOP * (keys % WINDOWS_OF_RECORDING)
        files = [_file(number) for number in (keys // WINDOWS_OF_RECORDING).tolist()]
        embeddings = pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(matrix).ravel(), self._width)
        return pa.Table.from_arrays(
            [pa.array(keys), pa.array(files), pa.array(starts), pa.array(starts + WINDOW), embeddings],
            schema=self._schema,
        )


NAMES = {
    "FAISS + SQLite (ours)": None,
    "LanceDB, IVF_PQ": "IvfPq",
    "LanceDB, IVF_HNSW_SQ": "IvfHnswSq",
    "LanceDB, IVF_RQ": "IvfRq",
}
# Of LanceDB, from fast to thorough: what a row is tuned over.
SETTINGS = tuple(
    Setting(probes, refined)
    for probes, refined in ((8, 2), (20, 5), (20, 20), (50, 10), (50, 20), (50, 50), (100, 50), (200, 100), (200, 500))
)
_MODEL = {"name": "none", "weights": "none"}


def open_store(name: str, folder: Path, width: int) -> Store:
    """Open a store of this name, or make it."""
    index = NAMES[name]
    return SoundLibrary(folder, width) if index is None else Lance(folder, width, index)


def settings_of(name: str) -> tuple[Setting | None, ...]:
    """The settings a store is tuned over; ours has none: its default is measured."""
    return (None,) if NAMES[name] is None else (None, *SETTINGS)


def insert_all(store: Store, blocks: Iterator[np.ndarray]) -> int:
    """Insert windows in the order of their keys; returns how many."""
    first = 0
    for block in blocks:
        for begin in range(0, len(block), INSERTED_AT_ONCE):
            store.insert(first + begin, block[begin : begin + INSERTED_AT_ONCE])
        first += len(block)
    return first


def _keys(recordings: Sequence[int]) -> list[int]:
    return [number * WINDOWS_OF_RECORDING + window for number in recordings for window in range(WINDOWS_OF_RECORDING)]


def _file(recording: int) -> str:
    return f"/recordings/{recording:07d}.wav"


def _key(file: str, start: float) -> int:
    return int(Path(file).stem) * WINDOWS_OF_RECORDING + round(start / HOP)
