"""Clip index: opens a dataset folder or URL, validates it, and reads its clips.

A dataset folder holds WebDataset tars (`{key}.flac` and `{key}.json` per clip), `index.npy` (one INDEX_DTYPE record per
clip: position in the tar, length, number of captions), `durations.bin` (see clip_durations.py) and `dataset.json`
(shard sizes, totals, mel statistics). The index is memory-mapped: opening 109 million clips takes no memory.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slap_fast.data.format.captions import captions_of
from slap_fast.data.format.clip_durations import index_digest, read_durations, write_durations
from slap_fast.data.format.dataset_files import (
    FORMAT_VERSION,
    INDEX_DTYPE,
    INDEX_NAME,
    INFO_NAME,
    PART_NAME,
    DatasetError,
)
from slap_fast.data.format.remote import RemoteFolder, is_url
from slap_fast.data.format.shard_files import REINDEX, LocalShards, ShardFiles, Span
from slap_fast.data.format.tar_members import TarError, member_name, split_key
from slap_fast.errors import one_line
from slap_fast.runtime.buffer_pool import BufferPool

__all__ = ["INDEX_DTYPE", "ClipIndex", "DatasetError", "StoredClip"]

_PART = 1 << 18
_ROWS = 1024
# The two files of a clip are read in one request if at most this many bytes are between them (a tar header is 512 to
# 1,536 bytes).
_GAP = 1 << 16
_MOST_NESTED = 100
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')  # strings as a whole
# Bound on the size of an audio file: 4 bytes per sample uncompressed, plus room for pictures and tags.
_BYTES_PER_SAMPLE = 4
_EXTRA_BYTES = 1 << 24
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
_MAY_BE_NEGATIVE = ("mel_mean",)


class StoredClip(NamedTuple):
    """A clip as stored in its tar.

    Attributes:
        audio: the FLAC file.
        metadata: the JSON of the clip; `["captions"]` is its list of captions.
    """

    audio: memoryview
    metadata: dict[str, Any]


class ClipIndex:
    """A dataset opened for reading: memory-mapped, safe to share between threads, cheap to pickle.

    Attributes:
        location: the folder or URL, as given.
        folder: the folder with index, durations and tokenizer: the dataset folder, or the local copy for a URL.
        info: `dataset.json` (`format_version`, `name`, `shards` as `{name, bytes, clips, seconds}`, `clips`, `seconds`,
            `captions`, `sample_rate` in Hz, `mel_mean`, `mel_std`, ...).
        records: `[N]` INDEX_DTYPE, memory-mapped, in shard order.
        durations: `[N]` float32 seconds, memory-mapped.
        shards: names of the tars; `records["shard"]` is a position in this list.
    """

    def __init__(
        self,
        folder: Path,
        info: dict[str, Any],
        records: np.ndarray,
        durations: np.ndarray,
        *,
        location: str | None = None,
        files: ShardFiles | None = None,
    ) -> None:
        self.location = location or str(folder)
        self.folder = folder
        self.info = info
        self.records = records
        self.durations = durations
        self.shards: list[str] = [shard["name"] for shard in info["shards"]]
        self._files = files or LocalShards(folder, self.shards)
        self._buffers = BufferPool()

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> ClipIndex:
        """Opens and validates a dataset folder or its URL (`s3://...`, see `slap_fast.data.format.remote`).

        The first opening validates every record and writes `durations.bin`; later openings find that file and read
        neither the index nor the durations as a whole.

        Raises:
            DatasetError: a file is missing, malformed, of another version, or does not match the tars.
            MissingExtraError: the package that reads such URLs is not installed.
        """
        location = os.fspath(location)
        remote = RemoteFolder(location) if is_url(location) else None
        folder = remote.local_copy() if remote else Path(location)
        info = _read_info(folder)
        records = map_records(folder / INDEX_NAME, info["clips"])
        size_of = remote.size_of() if remote else partial(_local_size, folder)
        sizes = _check_shards(location, info["shards"], len(records), size_of)
        durations = read_durations(folder, info["shards"], len(records))
        if durations is None:
            parts = partial(_checked_parts, folder, records, sizes)
            durations = write_durations(folder, info["shards"], len(records), parts)
        files = remote.shards([shard["name"] for shard in info["shards"]]) if remote else None
        return cls(folder, info, records, durations, location=location, files=files)

    def __len__(self) -> int:
        return len(self.records)

    def __str__(self) -> str:
        """Number, length and a fingerprint of the clips: equal for copies of a dataset at two locations."""
        totals = [self.info[name] for name in ("clips", "seconds", "captions", "mel_mean", "mel_std")]
        digest = hashlib.blake2b(json.dumps(totals).encode(), digest_size=4)
        digest.update(index_digest(self.folder, self.info["shards"]))
        return f"{len(self)} clips of {self.info['seconds']:.1f} s ({digest.hexdigest()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipIndex.open, (self.location,)

    def shard_name(self, clip: int) -> str:
        """Name of the tar that holds the clip, or its number if the index was damaged after it was opened."""
        shard = int(self.records[clip]["shard"])
        return self.shards[shard] if shard < len(self.shards) else f"shard {shard}"

    def release(self) -> None:
        """Drops the pages of records and durations from the resident set; the next access maps them again.

        Without it, every page that was read counts as resident memory of the process, although it is reclaimable.
        """
        for array in (self.records, self.durations):
            release_pages(array)

    def key(self, clip: int, *, retry: bool = True) -> str:
        """The clip's name in its tar, without the extension.

        Args:
            retry: retry if the storage does not answer.
        """
        record = self.records[clip]
        shard = self._shard(record)
        try:
            read = partial(self._read, shard, retry=retry)
            name = member_name(read, int(record["audio_offset"]))
        except TarError as error:
            raise DatasetError(f"{self._files.path(shard)}: {error}; {REINDEX}") from error
        return split_key(name)[0]

    def read_audio(self, clip: int) -> bytes:
        """The clip's FLAC file."""
        record = self.records[clip]
        return self._read(self._shard(record), int(record["audio_offset"]), int(record["audio_size"]))

    def read_metadata(self, clip: int) -> dict[str, Any]:
        """The clip's JSON; `["captions"]` is its list of captions, whatever their name in the tar."""
        record = self.records[clip]
        shard, offset = self._shard(record), int(record["meta_offset"])
        return self._parse(shard, offset, self._read(shard, offset, int(record["meta_size"])))

    def read_clips(self, clips: np.ndarray) -> list[StoredClip | DatasetError]:
        """Audio and metadata of `[n]` clips, or an error for each clip that cannot be read.

        One request per clip where possible, all of them concurrent. The audio of all clips is in one memory block,
        which is reused once nothing refers to it.
        """
        rows = gather(self.records, clips)
        # The sampler trusted the durations. A record that no longer matches them may claim any amount of memory.
        with np.errstate(divide="ignore", invalid="ignore"):
            changed = (rows["samples"] / rows["sample_rate"]).astype(np.float32) != gather(self.durations, clips)
        records = [_Location(*values) for values in rows[list(_Location._fields)].tolist()]
        errors = [self._check(*pair) for pair in zip(records, changed.tolist(), strict=True)]
        spans = [() if error else record.spans() for record, error in zip(records, errors, strict=True)]
        flat = [span for group in spans for span in group]
        block = self._buffers.take(sum(span.size for span in flat)).data
        buffers, start = [], 0
        for span in flat:
            buffers.append(block[start : start + span.size])
            start += span.size
        results = iter(zip(buffers, self._files.read(flat, buffers), strict=True))
        found: list[StoredClip | DatasetError] = []
        for record, error, group in zip(records, errors, spans, strict=True):
            read = [next(results) for _ in group]
            error = error or next((failure for _, failure in read if failure), None)
            found.append(error or self._stored(record, group, [buffer for buffer, _ in read]))
        return found

    def _stored(
        self, record: _Location, spans: tuple[Span, ...], buffers: list[memoryview]
    ) -> StoredClip | DatasetError:
        audio_start = record.audio_offset - spans[0].offset
        meta_start = record.meta_offset - spans[-1].offset
        try:
            metadata = self._parse(
                record.shard, record.meta_offset, bytes(buffers[-1][meta_start : meta_start + record.meta_size])
            )
        except DatasetError as error:
            return error
        return StoredClip(buffers[0][audio_start : audio_start + record.audio_size], metadata)

    def _check(self, record: _Location, changed: bool) -> DatasetError | None:
        """The error of an impossible record, found before memory is allocated for it."""
        if record.shard >= len(self.shards):
            return self._no_shard(record.shard)
        path = self._files.path(record.shard)
        if changed:
            return DatasetError(
                f"{path}: {INDEX_NAME} lists a clip with {record.samples} samples, which has changed since the "
                f"dataset was opened; {REINDEX}"
            )
        for size, offset, max_size in (
            (record.audio_size, record.audio_offset, _BYTES_PER_SAMPLE * record.samples + _EXTRA_BYTES),
            (record.meta_size, record.meta_offset, _EXTRA_BYTES),
        ):
            if size > max_size:
                return DatasetError(
                    f"{path}: {INDEX_NAME} lists {size} bytes at {offset} for a clip of {record.samples} samples; "
                    f"{REINDEX}"
                )
        return None

    def _shard(self, record: np.void) -> int:
        shard = int(record["shard"])
        if shard >= len(self.shards):
            raise self._no_shard(shard)
        return shard

    def _no_shard(self, shard: int) -> DatasetError:
        return DatasetError(
            f"{self.folder / INDEX_NAME}: a clip is listed in shard {shard} of {len(self.shards)}: the index was "
            f"damaged after the dataset was opened; {REINDEX}"
        )

    def iter_captions(self) -> Iterator[str]:
        """Every caption of every clip, in order (for training a tokenizer)."""
        for clip in range(len(self)):
            yield from self.read_metadata(clip)["captions"]

    def _parse(self, shard: int, offset: int, data: bytes) -> dict[str, Any]:
        return parse_metadata(data, f"{self._files.path(shard)} at byte {offset}")

    def _read(self, shard: int, offset: int, size: int, *, retry: bool = True) -> bytes:
        data = bytearray(size)
        (error,) = self._files.read([Span(shard, offset, size)], [memoryview(data)], retry=retry)
        if error is not None:
            raise error
        return bytes(data)


class _Location(NamedTuple):
    """The fields of a record that reading needs."""

    shard: int
    audio_offset: int
    audio_size: int
    meta_offset: int
    meta_size: int
    samples: int

    def spans(self) -> tuple[Span, ...]:
        """One span for both files, or two if the files are far apart: first the audio, then the metadata."""
        start = min(self.audio_offset, self.meta_offset)
        end = max(self.audio_offset + self.audio_size, self.meta_offset + self.meta_size)
        if end - start <= self.audio_size + self.meta_size + _GAP:
            return (Span(self.shard, start, end - start),)
        return (
            Span(self.shard, self.audio_offset, self.audio_size),
            Span(self.shard, self.meta_offset, self.meta_size),
        )


def parse_metadata(data: bytes, where: str) -> dict[str, Any]:
    """Parses a clip's JSON or plain-text caption file to a dict with `captions`."""
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("{") and _nesting(text) > _MOST_NESTED:
            raise ValueError(f"nested more than {_MOST_NESTED} times")
        value = json.loads(text) if text.lstrip().startswith("{") else {"captions": text.splitlines()}
    except ValueError as error:
        raise DatasetError(f"{where}: not JSON in UTF-8 ({error}); {REINDEX}") from error
    listed = value.get("captions")
    value["captions"] = captions_of(listed if isinstance(listed, list) else value)
    return value


def _nesting(text: str) -> int:
    """Depth of brackets outside strings. At Python's limit, `json` would leave finalizers no stack to run on."""
    if text.count("[") + text.count("{") <= _MOST_NESTED:
        return 0
    depth = deepest = 0
    for token in _BRACKETS.findall(text):
        depth += (token in "[{") - (token in "]}")
        deepest = max(deepest, depth)
    return deepest


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO_NAME
    if not folder.is_dir():
        raise DatasetError(f"{folder}: not a folder; create a dataset with `slap-fast prepare`")
    try:
        info = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if (folder / PART_NAME).exists():
            raise DatasetError(
                f"{folder}: a part of a dataset; join all parts by `slap-fast prepare --merge`"
            ) from error
        raise DatasetError(
            f"{path}: missing: the folder is not a dataset, or `slap-fast prepare` has not finished; run it (again)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}); {REINDEX}") from error
    if not isinstance(info, dict) or "format_version" not in info:
        raise DatasetError(f"{path}: has no format_version, so it is not a slap-fast dataset")
    if info["format_version"] != FORMAT_VERSION:
        raise DatasetError(
            f"{path}: format version {info['format_version']!r}, this slap-fast reads {FORMAT_VERSION}; {REINDEX}"
        )
    for name, kind in _INFO_FIELDS.items():
        value = info.get(name)
        # Python reads NaN from JSON, and a bool is an int.
        odd = isinstance(value, bool) or (isinstance(value, (int, float)) and not 0 <= abs(value) < 2.0**63)
        if not isinstance(value, kind) or odd or (name not in _MAY_BE_NEGATIVE and not odd and _negative(value)):
            raise DatasetError(f"{path}: field {name!r} is {value!r}; {REINDEX}")
    if not info["clips"]:
        raise DatasetError(f"{path}: the dataset has no clips; prepare it again from sources that have some")
    for name in ("seconds", "mel_std"):
        if not info[name] > 0:
            raise DatasetError(f"{path}: {name} is {info[name]!r}; it must be above 0; {REINDEX}")
    return info


def _negative(value: Any) -> bool:
    return isinstance(value, (int, float)) and value < 0


def map_records(path: Path, clips: int) -> np.ndarray:
    """Memory-maps `[clips]` INDEX_DTYPE from an index file.

    Raises:
        DatasetError: the file is missing, malformed, or of another length.
    """
    try:
        # Not np.load, which also opens archives and pickles.
        records = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: missing; {REINDEX}") from error
    except Exception as error:  # The header is Python source, so a damaged one can raise anything.
        raise DatasetError(f"{path}: truncated or not an array ({one_line(error)}); {REINDEX}") from error
    if records.dtype != INDEX_DTYPE or records.ndim != 1:
        raise DatasetError(f"{path}: holds {records.dtype}, not a list of clip records; {REINDEX}")
    if len(records) != clips:
        raise DatasetError(f"{path}: {len(records)} clips, but {INFO_NAME} says {clips}; {REINDEX}")
    return records


def _check_shards(location: str, shards: list[Any], clips: int, size_of: Callable[[str], int | None]) -> np.ndarray:
    """Validates the shard list, returns `[S]` int64 sizes. `size_of` returns a tar's actual size, None if unknown."""
    base = location.rstrip("/")
    sizes = np.zeros(len(shards), np.int64)
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or not {"name", "bytes", "clips", "seconds"} <= shard.keys():
            raise DatasetError(f"{base}/{INFO_NAME}: shard {number} is {shard!r}; {REINDEX}")
        name, stated = shard["name"], shard["bytes"]
        if not _plain_name(name):
            raise DatasetError(
                f"{base}/{INFO_NAME}: shard {number} is named {name!r}; it must be the name of a .tar file in the "
                f"folder, without a path; {REINDEX}"
            )
        if type(stated) is not int or not 0 <= stated < 2**63:
            raise DatasetError(f"{base}/{INFO_NAME}: shard {number} has {stated!r} bytes; {REINDEX}")
        path = f"{base}/{name}"
        try:
            size = size_of(name)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); restore it, or {REINDEX}") from error
        sizes[number] = stated if size is None else size
        if sizes[number] != stated:
            raise DatasetError(
                f"{path}: {sizes[number]} bytes, but {INFO_NAME} says {stated}: it is truncated or was "
                f"replaced; {REINDEX}"
            )
    counts = [shard["clips"] for shard in shards]
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != clips:
        raise DatasetError(f"{base}/{INFO_NAME}: the clip counts of the shards do not sum to {clips}; {REINDEX}")
    return sizes


def _plain_name(name: Any) -> bool:
    """Whether `name` is a tar in the folder itself: no path, so that it cannot point elsewhere."""
    try:
        return isinstance(name, str) and name.endswith(".tar") and not set(b"/\0") & set(os.fsencode(name))
    except UnicodeEncodeError:  # lone surrogates cannot form a path
        return False


def _local_size(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size


def _checked_parts(folder: Path, records: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Validates the records and yields them part by part."""
    path = folder / INDEX_NAME
    start = 0
    for part in record_parts(records):
        bad = part["shard"] >= len(sizes)
        if not bad.any():
            ends = sizes[part["shard"]].astype(np.uint64)
            for offset, size in (("audio_offset", "audio_size"), ("meta_offset", "meta_size")):
                # No addition: a corrupted offset near 2^64 would wrap.
                bad |= (part[offset] > ends) | (part[size] > ends - np.minimum(part[offset], ends))
            bad |= (part["samples"] == 0) | (part["sample_rate"] == 0) | (part["captions"] == 0)
        if bad.any():
            clip = start + int(np.argmax(bad))
            record = dict(zip(records.dtype.names or (), records[clip].tolist(), strict=True))
            raise DatasetError(f"{path}: clip {clip} has an impossible record ({record}); {REINDEX}")
        yield part
        start += len(part)


def record_parts(records: np.ndarray) -> Iterator[np.ndarray]:
    """Memory-mapped records from first to last, one part in memory at a time."""
    for start in range(0, len(records), _PART):
        yield records[start : start + _PART]
        release_pages(records)


def gather(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`array[rows]` of a memory-mapped array, 1,024 rows at a time.

    The kernel maps 64 KiB around every row that is touched, so thousands of scattered rows at once would take hundreds
    of MiB of resident memory.
    """
    found = np.empty(rows.shape, array.dtype)
    for start in range(0, len(rows), _ROWS):
        found[start : start + _ROWS] = array[rows[start : start + _ROWS]]
        release_pages(array)
    return found


def release_pages(array: np.ndarray) -> None:
    """Drops the pages of a memory-mapped array from the resident set; does nothing for other arrays."""
    if isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)
