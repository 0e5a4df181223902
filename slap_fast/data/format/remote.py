"""Remote datasets: reads a dataset at a URL (`s3://bucket/train`, `https://...`, `file://...`) through fsspec.

The tars are not copied: each clip is one range request, and the requests of a batch run concurrently. `dataset.json`,
the index and the tokenizer are copied to `SLAP_FAST_CACHE` (default `~/.cache/slap_fast`), to one folder per URL and
content of `dataset.json`. A file is copied again if the copy is damaged or if the storage reports another size, ETag,
modification time or similar. Credentials and other settings are fsspec's: environment variables and `~/.config/fsspec`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from slap_fast.config.saved_files import TOKENIZER_FILES
from slap_fast.data.format.dataset_files import (
    INDEX_NAME,
    INFO_NAME,
    TOKENIZER_NAME,
    DatasetError,
    file_digest,
    folder_lock,
)
from slap_fast.data.format.shard_files import Span, ends_early
from slap_fast.errors import MissingExtraError, SlapFastError
from slap_fast.runtime.durable_files import replace_file

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SLAP_FAST_CACHE"
_COPIES = ".copies.json"  # suffix of the file beside the cache folder
_HASHED_BYTES = 1 << 26
# The fields of fsspec's `info` that change when the content of a file changes, over its implementations.
_VERSION_FIELDS = frozenset(
    ("size", "ETag", "etag", "md5", "md5Hash", "crc32c", "Content-MD5", "Digest", "checksum", "generation", "VersionId")
) | {"mtime", "created", "updated", "LastModified", "Last-Modified", "last_modified"}
_REQUESTS_AT_ONCE = 32
_ATTEMPTS = 5
_FIRST_PAUSE = 0.2  # seconds; doubles after each attempt
# Errors that a retry would not change.
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError)

_T = TypeVar("_T")


def is_url(location: str) -> bool:
    return "://" in location


def local_folder(location: str) -> Path:
    """The local folder with a dataset's index and tokenizer: the dataset folder, or the local copy for a URL."""
    return RemoteFolder(location).local_copy() if is_url(location) else Path(location)


class RemoteFolder:
    """A dataset folder at a URL.

    Raises:
        MissingExtraError: the package that reads such URLs is not installed.
        DatasetError: fsspec does not support this kind of URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import fsspec

            self._files, self._path = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise MissingExtraError(
                f"{url}: {error}; pip install 'slap-fast[remote]' reads s3:// and https://"
            ) from error
        except ValueError as error:
            raise DatasetError(f"{url}: {error}") from error

    def local_copy(self) -> Path:
        """A local folder with everything but the tars. Concurrent processes share one download.

        Raises:
            DatasetError: there is no dataset at the URL, it cannot be read, or the cache cannot be written.
        """
        self._files.invalidate_cache()
        info = self._content(INFO_NAME)
        digest = hashlib.blake2b(self.url.encode() + b"\0" + info, digest_size=16).hexdigest()
        folder = _cache() / "datasets" / digest
        try:
            with folder_lock(folder, wait=True):
                copies = _CopyRecords.read(folder)
                for name in (INDEX_NAME, *(f"{TOKENIZER_NAME}/{file}" for file in TOKENIZER_FILES)):
                    version = self._version(name)
                    if not copies.valid(name, version):
                        self._download(name, folder, optional=name != INDEX_NAME)
                        copies.add(name, version)
                replace_file(folder / INFO_NAME, [info])
                copies.write()
        except OSError as error:
            raise DatasetError(
                f"{folder}: the index of {self.url} cannot be cached here ({error}); make room, or set "
                f"{CACHE_VARIABLE} to another folder"
            ) from error
        return folder

    def _version(self, name: str) -> str | None:
        """The storage's description of a file's content (size, ETag, time); None if it does not describe files."""
        try:
            info = with_retries(partial(self._files.info, f"{self._path}/{name}"))
        except FileNotFoundError:
            return "missing"
        except Exception as error:  # fsspec implementations raise any type
            logger.info("%s/%s: the storage gives no file information (%s)", self.url, name, error)
            return None
        return str(sorted((key, str(info[key])) for key in _VERSION_FIELDS & info.keys()))

    def size_of(self) -> Callable[[str], int | None]:
        """A function from a file name to its size in bytes; None if the storage does not list sizes.

        The function raises FileNotFoundError for a file that is not in the listing.
        """
        self._files.invalidate_cache()
        try:
            entries = with_retries(partial(self._files.ls, self._path, detail=True))
        except Exception as error:  # fsspec implementations raise any type
            logger.info("%s cannot be listed (%s), so shard sizes are not checked", self.url, error)
            entries = []
        sizes = {str(entry["name"]).rstrip("/").rpartition("/")[2]: entry.get("size") for entry in entries}

        def size_of(name: str) -> int | None:
            if not isinstance(sizes.get(INFO_NAME), int):
                return None
            if name not in sizes:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return sizes[name]

        return size_of

    def shards(self, names: Sequence[str]) -> RemoteShards:
        return RemoteShards(self._files, self.url, self._path, names)

    def _content(self, name: str) -> bytes:
        try:
            return with_retries(partial(self._files.cat_file, f"{self._path}/{name}"))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self.url}/{name}: missing; give the URL of a folder that `slap-fast prepare` wrote"
            ) from error
        except Exception as error:
            raise DatasetError(f"{self.url}/{name}: cannot be read ({_words(error)})") from error

    def _download(self, name: str, folder: Path, *, optional: bool) -> None:
        """Copies a file; if an optional file is missing at the URL, removes its copy."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            try:
                with_retries(partial(self._files.get_file, f"{self._path}/{name}", str(temporary)))
                expected = self._files.size(f"{self._path}/{name}")
            except Exception as error:
                if optional and isinstance(error, FileNotFoundError):
                    path.unlink(missing_ok=True)
                    return
                raise DatasetError(f"{self.url}/{name}: cannot be fetched ({_words(error)})") from error
            if expected is not None and temporary.stat().st_size != expected:
                raise DatasetError(
                    f"{self.url}/{name}: got {temporary.stat().st_size} of {expected} bytes; run the command again"
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()  # if it is empty


class _CopyRecords:
    """Records of the copied files: version at the storage; size, modification time and digest of the copy."""

    def __init__(self, folder: Path, entries: dict[str, Any]) -> None:
        self._folder = folder
        self._entries = entries

    @classmethod
    def read(cls, folder: Path) -> _CopyRecords:
        try:
            entries = json.loads(folder.with_suffix(_COPIES).read_bytes())
        except (OSError, ValueError, RecursionError):
            entries = {}
        return cls(folder, entries if isinstance(entries, dict) else {})

    def valid(self, name: str, version: str | None) -> bool:
        """Whether the copy is undamaged and still matches the file at the storage."""
        entry = self._entries.get(name)
        if not isinstance(entry, dict) or (version is not None and entry.get("there") != version):
            return False
        try:
            state = (self._folder / name).stat()
        except FileNotFoundError:
            return entry.get("size") is None
        if state.st_size != entry.get("size"):
            return False
        # A large file with an unchanged modification time is not hashed again: `clip_durations` samples its content.
        untouched = state.st_mtime_ns == entry.get("time") and state.st_size > _HASHED_BYTES
        return untouched or _digest(self._folder / name) == entry.get("digest")

    def add(self, name: str, version: str | None) -> None:
        """Records a copy just made, or (with size None) an optional file that is missing."""
        entry: dict[str, Any] = {"there": version, "size": None}
        if (self._folder / name).exists():
            state = (self._folder / name).stat()
            entry |= {"size": state.st_size, "time": state.st_mtime_ns, "digest": _digest(self._folder / name)}
        self._entries[name] = entry

    def write(self) -> None:
        replace_file(self._folder.with_suffix(_COPIES), [json.dumps(self._entries, indent=1).encode()])


def _digest(path: Path) -> str:
    return file_digest(path, hashlib.blake2b(digest_size=16))


class RemoteShards:
    """Tars at a URL; see `slap_fast.data.format.shard_files.ShardFiles`."""

    def __init__(self, files: Any, url: str, path: str, names: Sequence[str]) -> None:
        self._files = files
        self._url = url
        self._path = path
        self._names = names
        self._pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="remote-read")

    def path(self, shard: int) -> str:
        """See `ShardFiles.path`."""
        return f"{self._url}/{self._names[shard]}"

    def read(
        self, spans: Sequence[Span], buffers: Sequence[memoryview], *, retry: bool = True
    ) -> list[DatasetError | None]:
        """See `ShardFiles.read`."""
        # Not fsspec's `cat_ranges`: it is sequential for all but asynchronous file systems, and cannot retry one range.
        return list(self._pool.map(partial(self._fill, attempts=_ATTEMPTS if retry else 1), spans, buffers))

    def _fill(self, span: Span, buffer: memoryview, *, attempts: int) -> DatasetError | None:
        path, end = f"{self._path}/{self._names[span.shard]}", span.offset + span.size
        try:
            data = with_retries(partial(self._files.cat_file, path, start=span.offset, end=end), attempts)
        except Exception as error:
            return DatasetError(
                f"{self.path(span.shard)}: cannot read {span.size} bytes at {span.offset} ({_words(error)})"
            )
        if len(data) < span.size:
            return ends_early(self.path(span.shard), span, len(data))
        if len(data) > span.size:
            return DatasetError(
                f"{self.path(span.shard)}: got {len(data)} bytes for a range of {span.size}: the server does not "
                "support range requests, which training needs"
            )
        buffer[:] = data
        return None


def with_retries(action: Callable[[], _T], attempts: int = _ATTEMPTS) -> _T:
    """Calls `action`, with up to `attempts` attempts (five take about three seconds) if its error may be temporary.

    Raises:
        StorageError: all attempts failed.
        Exception: a permanent error of `action`, unchanged.
    """
    pause = _FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except _PERMANENT:
            raise
        except Exception as error:  # fsspec implementations raise any type
            if attempt == attempts:
                raise StorageError(f"{attempts} attempts failed, the last with {_words(error)}") from error
            logger.info("trying again: %s", _words(error))
        # Jitter, so that requests that failed together do not retry together.
        time.sleep(pause * random.uniform(0.75, 1.25))
        pause *= 2
    raise AssertionError("attempts is below 1")


class StorageError(SlapFastError):
    """A storage failed on every attempt."""


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"


def _cache() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slap_fast"
