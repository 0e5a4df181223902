"""The index of a dataset folder: where in which tar every clip lies, how long it is, how many captions it has.

A dataset folder holds WebDataset tars (`{key}.flac`, `{key}.json` for each clip), `index.npy` (one INDEX_DTYPE record a
clip, memory-mapped: 109 million clips cost no memory to open), `durations.bin` (see `slap_fast.data.clip_durations`)
and `dataset.json` (shard sizes, totals, mel statistics).
"""

from __future__ import annotations

import json
import mmap
import os
import threading
import tokenize
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.data.captions import captions_of
from slap_fast.data.clip_durations import read_durations, write_durations
from slap_fast.data.dataset_files import (
    FORMAT_VERSION,
    INDEX_DTYPE,
    INDEX_NAME,
    INFO_NAME,
    DatasetError,
)
from slap_fast.data.tar_members import TarError, member_name, split_key

__all__ = ["INDEX_DTYPE", "ClipIndex", "DatasetError"]

_OPEN_SHARDS = 256
_PART = 1 << 18
_ROWS = 1024
_INFO_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "name": str,
    "shards": list,
    "clips": int,
    "seconds": (int, float),
    "captions": int,
    "sample_rate": int,
    "mel_mean": (int, float),
    "mel_std": (int, float),
}


class ClipIndex:
    """A dataset folder opened for reading: memory-mapped, safe to share between threads, cheap to pickle.

    Attributes:
        folder: the dataset folder.
        info: `dataset.json` (`format_version`, `name`, `shards` as `{name, bytes, clips, seconds}`, `clips`, `seconds`,
            `captions`, `sample_rate` in Hz, `mel_mean`, `mel_std`, ...).
        records: `[N]` INDEX_DTYPE, memory-mapped, in shard order.
        durations: `[N]` float32 seconds, memory-mapped.
        shards: names of the tars, as `records["shard"]` counts them.
    """

    def __init__(self, folder: Path, info: dict[str, Any], records: np.ndarray, durations: np.ndarray) -> None:
        self.folder = folder
        self.info = info
        self.records = records
        self.durations = durations
        self.shards: list[str] = [shard["name"] for shard in info["shards"]]
        self._handles: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ClipIndex:
        """Opens and validates a dataset folder.

        The records are checked once, and the durations written that say so; a later opening reads neither whole.

        Raises:
            DatasetError: a file is missing, malformed, of another version, or does not fit the tars; it says which.
        """
        folder = Path(folder)
        info = _read_info(folder)
        records = map_records(folder / INDEX_NAME, info["clips"])
        sizes = _check_shards(folder, info["shards"], len(records))
        durations = read_durations(folder, info["shards"], len(records))
        if durations is None:
            parts = partial(_checked_parts, folder, records, sizes)
            durations = write_durations(folder, info["shards"], len(records), parts)
        return cls(folder, info, records, durations)

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipIndex.open, (self.folder,)

    def record(self, clip: int) -> np.void:
        """The clip's INDEX_DTYPE record."""
        return self.records[clip]

    def shard_name(self, clip: int) -> str:
        """Name of the tar that holds the clip."""
        return self.shards[int(self.records[clip]["shard"])]

    def release(self) -> None:
        """Gives back the memory of what was read of records and durations; the next look at them maps it again.

        Pages of a mapped file count as resident from when they are read, though the system can take them back.
        """
        for array in (self.records, self.durations):
            release_pages(array)

    def key(self, clip: int) -> str:
        """The clip's name in its tar, without the extension."""
        record = self.records[clip]
        shard = int(record["shard"])
        try:
            name = member_name(lambda offset, size: self._read(shard, offset, size), int(record["audio_offset"]))
        except TarError as error:
            raise DatasetError(f"{self.folder / self.shards[shard]}: {error}; {_REINDEX}") from error
        return split_key(name)[0]

    def read_audio(self, clip: int) -> bytes:
        """The clip's FLAC file."""
        record = self.records[clip]
        return self._read(int(record["shard"]), int(record["audio_offset"]), int(record["audio_size"]))

    def read_metadata(self, clip: int) -> dict[str, Any]:
        """The clip's JSON; `["captions"]` is its list of captions, whatever the tar calls them."""
        record = self.records[clip]
        shard, offset = int(record["shard"]), int(record["meta_offset"])
        return parse_metadata(
            self._read(shard, offset, int(record["meta_size"])), f"{self.folder / self.shards[shard]} at byte {offset}"
        )

    def iter_captions(self) -> Iterator[str]:
        """Every caption of every clip, in order: what a tokenizer is trained on."""
        for clip in range(len(self)):
            yield from self.read_metadata(clip)["captions"]

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        handle = self._handle(shard)
        # pread takes the offset along, so threads share a descriptor without a lock.
        data = os.pread(handle.descriptor, size, offset)
        while len(data) < size:
            more = os.pread(handle.descriptor, size - len(data), offset + len(data))
            if not more:
                raise DatasetError(
                    f"{self.folder / self.shards[shard]}: ends at byte {offset + len(data)}, before the {size} bytes "
                    f"at {offset} that the index promises; {_REINDEX}"
                )
            data += more
        return data

    def _handle(self, shard: int) -> _Handle:
        with self._lock:
            handle = self._handles.pop(shard, None)
            if handle is None:
                handle = _Handle(self.folder / self.shards[shard])
            self._handles[shard] = handle
            # An evicted handle closes when the last thread that reads through it lets go.
            if len(self._handles) > _OPEN_SHARDS:
                self._handles.popitem(last=False)
            return handle


class _Handle:
    """An open tar that closes with its last reference."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DatasetError(f"{path}: cannot open: {error.strerror}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


_REINDEX = "if the tars are good, `slap-fast prepare --reindex` on the folder rebuilds the index; else prepare it again"


def parse_metadata(data: bytes, where: str) -> dict[str, Any]:
    """A clip's JSON, or its plain-text caption file, as a dict with `captions`."""
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text) if text.lstrip().startswith("{") else {"captions": text.splitlines()}
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON in UTF-8 ({error}); {_REINDEX}") from error
    listed = value.get("captions")
    value["captions"] = captions_of(listed if isinstance(listed, list) else value)
    return value


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO_NAME
    if not folder.is_dir():
        raise DatasetError(f"{folder}: not a folder; make a dataset with `slap-fast prepare`")
    try:
        info = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: missing: the folder is no dataset, or `slap-fast prepare` has not finished; run it (again)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}); {_REINDEX}") from error
    if not isinstance(info, dict) or "format_version" not in info:
        raise DatasetError(f"{path}: has no format_version, so it is not a slap-fast dataset")
    if info["format_version"] != FORMAT_VERSION:
        raise DatasetError(
            f"{path}: format version {info['format_version']}, this slap-fast reads {FORMAT_VERSION}; {_REINDEX}"
        )
    for name, kind in _INFO_FIELDS.items():
        if not isinstance(info.get(name), kind):
            raise DatasetError(f"{path}: field {name!r} is {info.get(name)!r}; {_REINDEX}")
    return info


def map_records(path: Path, clips: int) -> np.ndarray:
    """Memory-maps `[clips]` INDEX_DTYPE from an index file.

    Raises:
        DatasetError: the file is missing, malformed, or of another length.
    """
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: missing; {_REINDEX}") from error
    # A header cut short fails as Python source does.
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise DatasetError(f"{path}: truncated or not an array ({error}); {_REINDEX}") from error
    if not isinstance(records, np.ndarray) or records.dtype != INDEX_DTYPE or records.ndim != 1:
        found = getattr(records, "dtype", type(records).__name__)
        raise DatasetError(f"{path}: holds {found}, not a list of clip records; {_REINDEX}")
    if len(records) != clips:
        raise DatasetError(f"{path}: {len(records)} clips, but {INFO_NAME} says {clips}; {_REINDEX}")
    return records


def _check_shards(folder: Path, shards: list[Any], clips: int) -> np.ndarray:
    """`[S]` int64 sizes of the tars."""
    sizes = np.zeros(len(shards), np.int64)
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or not {"name", "bytes", "clips", "seconds"} <= shard.keys():
            raise DatasetError(f"{folder / INFO_NAME}: shard {number} is {shard!r}; {_REINDEX}")
        path = folder / str(shard["name"])
        try:
            sizes[number] = path.stat().st_size
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); restore it, or {_REINDEX}") from error
        if sizes[number] != shard["bytes"]:
            raise DatasetError(
                f"{path}: {sizes[number]} bytes, but {INFO_NAME} says {shard['bytes']}: it is truncated or was "
                f"replaced; {_REINDEX}"
            )
    counts = [shard["clips"] for shard in shards]
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != clips:
        raise DatasetError(f"{folder / INFO_NAME}: the clips of the shards are not {clips} together; {_REINDEX}")
    return sizes


def _checked_parts(folder: Path, records: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """The records, part by part, each checked."""
    path = folder / INDEX_NAME
    start = 0
    for part in record_parts(records):
        bad = part["shard"] >= len(sizes)
        if not bad.any():
            ends = sizes[part["shard"]].astype(np.uint64)
            for offset, size in (("audio_offset", "audio_size"), ("meta_offset", "meta_size")):
                # Compared without adding: a corrupted offset near 2^64 would wrap.
                bad |= (part[offset] > ends) | (part[size] > ends - np.minimum(part[offset], ends))
            bad |= (part["samples"] == 0) | (part["sample_rate"] == 0) | (part["captions"] == 0)
        if bad.any():
            clip = start + int(np.argmax(bad))
            record = dict(zip(records.dtype.names or (), records[clip].tolist(), strict=True))
            raise DatasetError(f"{path}: clip {clip} cannot be ({record}); {_REINDEX}")
        yield part
        start += len(part)


def record_parts(records: np.ndarray) -> Iterator[np.ndarray]:
    """Memory-mapped records from first to last, a part in memory at a time."""
    for start in range(0, len(records), _PART):
        yield records[start : start + _PART]
        release_pages(records)


def gather(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`array[rows]` of a memory-mapped array, 1,024 rows at a time: each may touch a place of its own.

    Around each place the system maps 64 KiB, so that a batch of thousands, far apart, would be hundreds of MiB.
    """
    found = np.empty(rows.shape, array.dtype)
    for start in range(0, len(rows), _ROWS):
        found[start : start + _ROWS] = array[rows[start : start + _ROWS]]
        release_pages(array)
    return found


def release_pages(array: np.ndarray) -> None:
    """Takes the pages of a memory-mapped array out of the resident set; elsewhere nothing happens."""
    if isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)
