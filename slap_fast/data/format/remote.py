"""Datasets at a URL (`s3://bucket/train`, `https://...`, `file://...`), read through fsspec.

The tars stay where they are: a clip is one request for a range of bytes, and the requests of a batch go out together.
`dataset.json`, the index and the tokenizer are copied to `SLAP_FAST_CACHE` or `~/.cache/slap_fast`, in a folder for
each URL and each content of `dataset.json`. A copy is made again where it is damaged, or where the storage tells that
the file there is another one (its size, ETag, time or the like). Credentials and other settings are fsspec's:
environment variables and `~/.config/fsspec`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from slap_fast.config.saved_files import TOKENIZER_FILES
from slap_fast.data.format.dataset_files import INDEX_NAME, INFO_NAME, TOKENIZER_NAME, DatasetError
from slap_fast.data.format.shard_files import Span, ends_early
from slap_fast.errors import MissingExtraError, SlapFastError
from slap_fast.runtime.durable_files import replace_file

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SLAP_FAST_CACHE"
_COPIES = ".copies.json"  # beside the folder
_HASHED_BYTES = 1 << 26
# What fsspec's implementations say of a file that is another one when its content is.
_TELLING = frozenset(
    ("size", "ETag", "etag", "md5", "md5Hash", "crc32c", "Content-MD5", "Digest", "checksum", "generation", "VersionId")
) | {"mtime", "created", "updated", "LastModified", "Last-Modified", "last_modified"}
_REQUESTS_AT_ONCE = 32
_ATTEMPTS = 5
_FIRST_PAUSE = 0.2  # seconds; each further one is twice as long
# What another attempt would not change.
_DEFINITE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError)

_T = TypeVar("_T")


def is_url(location: str) -> bool:
    return "://" in location


def local_folder(location: str) -> Path:
    """The folder with a dataset's index and tokenizer: its own, or the local copy for a URL; see `RemoteFolder`."""
    return RemoteFolder(location).local_copy() if is_url(location) else Path(location)


class RemoteFolder:
    """A dataset folder at a URL.

    Raises:
        MissingExtraError: the package that reads such URLs is not installed.
        DatasetError: fsspec does not know what such a URL is.
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
        """A folder with everything but the tars. Processes that ask at the same time share one download.

        Raises:
            DatasetError: there is no dataset, it cannot be read, or the cache cannot be written.
        """
        self._files.invalidate_cache()
        info = self._content(INFO_NAME)
        digest = hashlib.blake2b(self.url.encode() + b"\0" + info, digest_size=16).hexdigest()
        folder = _cache() / "datasets" / digest
        try:
            with _only_one(folder):
                copies = _Copies.read(folder)
                for name in (INDEX_NAME, *(f"{TOKENIZER_NAME}/{file}" for file in TOKENIZER_FILES)):
                    there = self._identity(name)
                    if not copies.good(name, there):
                        self._download(name, folder, optional=name != INDEX_NAME)
                        copies.note(name, there)
                replace_file(folder / INFO_NAME, [info])
                copies.write()
        except OSError as error:
            raise DatasetError(
                f"{folder}: the index of {self.url} cannot be kept here ({error}); make room, or set {CACHE_VARIABLE} "
                "to another folder"
            ) from error
        return folder

    def _identity(self, name: str) -> str | None:
        """What the storage says of a file that changes when the file does; None where it says nothing."""
        try:
            said = persistently(partial(self._files.info, f"{self._path}/{name}"))
        except FileNotFoundError:
            return "missing"
        except Exception as error:  # fsspec's many implementations raise what they like.
            logger.info("%s/%s: the storage does not tell what it holds (%s)", self.url, name, error)
            return None
        return str(sorted((key, str(said[key])) for key in _TELLING & said.keys()))

    def size_of(self) -> Callable[[str], int | None]:
        """Bytes of a file by its name, None where the storage does not list sizes; no file raises FileNotFoundError."""
        self._files.invalidate_cache()
        try:
            entries = persistently(partial(self._files.ls, self._path, detail=True))
        except Exception as error:  # fsspec's many implementations raise what they like.
            logger.info("%s cannot be listed (%s), so sizes go unchecked", self.url, error)
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
            return persistently(partial(self._files.cat_file, f"{self._path}/{name}"))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self.url}/{name}: missing; the URL must be that of a folder that `slap-fast prepare` wrote"
            ) from error
        except Exception as error:
            raise DatasetError(f"{self.url}/{name}: cannot be read ({_words(error)})") from error

    def _download(self, name: str, folder: Path, *, optional: bool) -> None:
        """Copy a file; of one that is not there, and need not be, no copy stays."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            try:
                persistently(partial(self._files.get_file, f"{self._path}/{name}", str(temporary)))
                expected = self._files.size(f"{self._path}/{name}")
            except Exception as error:
                if optional and isinstance(error, FileNotFoundError):
                    path.unlink(missing_ok=True)
                    return
                raise DatasetError(f"{self.url}/{name}: cannot be fetched ({_words(error)})") from error
            if expected is not None and temporary.stat().st_size != expected:
                raise DatasetError(f"{self.url}/{name}: {temporary.stat().st_size} of {expected} bytes came; try again")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()  # if nothing came into it


class _Copies:
    """What was copied into a folder: each file's identity at the storage, and its own size, time and digest."""

    def __init__(self, folder: Path, entries: dict[str, Any]) -> None:
        self._folder = folder
        self._entries = entries

    @classmethod
    def read(cls, folder: Path) -> _Copies:
        try:
            entries = json.loads(folder.with_suffix(_COPIES).read_bytes())
        except (OSError, ValueError, RecursionError):
            entries = {}
        return cls(folder, entries if isinstance(entries, dict) else {})

    def good(self, name: str, there: str | None) -> bool:
        """Whether the copy is whole, and still of the file at the storage."""
        entry = self._entries.get(name)
        if not isinstance(entry, dict) or (there is not None and entry.get("there") != there):
            return False
        try:
            state = (self._folder / name).stat()
        except FileNotFoundError:
            return entry.get("size") is None
        if state.st_size != entry.get("size"):
            return False
        # A large file that nobody has written to since is not read whole: `clip_durations` samples it.
        untouched = state.st_mtime_ns == entry.get("time") and state.st_size > _HASHED_BYTES
        return untouched or _digest(self._folder / name) == entry.get("digest")

    def note(self, name: str, there: str | None) -> None:
        """A copy that has just been made, or a file that need not be there and is not."""
        entry: dict[str, Any] = {"there": there, "size": None}
        if (self._folder / name).exists():
            state = (self._folder / name).stat()
            entry |= {"size": state.st_size, "time": state.st_mtime_ns, "digest": _digest(self._folder / name)}
        self._entries[name] = entry

    def write(self) -> None:
        replace_file(self._folder.with_suffix(_COPIES), [json.dumps(self._entries, indent=1).encode()])


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()


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
        self, spans: Sequence[Span], buffers: Sequence[memoryview], *, patient: bool = True
    ) -> list[DatasetError | None]:
        """See `ShardFiles.read`."""
        return list(self._pool.map(partial(self._fill, attempts=_ATTEMPTS if patient else 1), spans, buffers))

    def _fill(self, span: Span, buffer: memoryview, *, attempts: int) -> DatasetError | None:
        path, end = f"{self._path}/{self._names[span.shard]}", span.offset + span.size
        try:
            data = persistently(partial(self._files.cat_file, path, start=span.offset, end=end), attempts)
        except Exception as error:
            return DatasetError(
                f"{self.path(span.shard)}: cannot read {span.size} bytes at {span.offset} ({_words(error)})"
            )
        if len(data) < span.size:
            return ends_early(self.path(span.shard), span, len(data))
        if len(data) > span.size:
            return DatasetError(
                f"{self.path(span.shard)}: {len(data)} bytes came for a range of {span.size}: the server does not "
                "serve ranges, which training needs"
            )
        buffer[:] = data
        return None


def persistently(action: Callable[[], _T], attempts: int = _ATTEMPTS) -> _T:
    """The action's result, tried again where the failure may pass: five times in some three seconds.

    Raises:
        StorageError: the last attempt failed too.
        Exception: a failure that would not pass, as the action raised it.
    """
    pause = _FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except _DEFINITE:
            raise
        except Exception as error:  # fsspec's many implementations raise what they like.
            if attempt == attempts:
                raise StorageError(f"{attempts} attempts failed, the last with {_words(error)}") from error
            logger.info("trying again: %s", _words(error))
        # Of uneven length, so that those who failed together do not come back together.
        time.sleep(pause * random.uniform(0.75, 1.25))
        pause *= 2
    raise AssertionError("there is no attempt to make")


class StorageError(SlapFastError):
    """A storage did not answer, or not as it should, however often it was asked."""


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"


def _cache() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slap_fast"


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One process at a time; the lock dies with it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
