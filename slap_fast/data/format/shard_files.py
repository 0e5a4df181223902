"""Shard readers: read byte ranges of a dataset's tars. Local folders here; URLs in `slap_fast.data.format.remote`."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from slap_fast.data.format.dataset_files import DatasetError

REINDEX = (
    "if the tars are intact, rebuild the index with `slap-fast prepare --reindex` on the folder; else prepare it again"
)
"""The advice at the end of an error about a damaged dataset."""
_OPEN_SHARDS = 256


class Span(NamedTuple):
    """A byte range of a tar; `shard` is its position in the dataset's list."""

    shard: int
    offset: int
    size: int


class ShardFiles(Protocol):
    """Reads tars; safe to share between threads."""

    def path(self, shard: int) -> str:
        """Path or URL of the tar, for messages."""
        ...

    def read(
        self, spans: Sequence[Span], buffers: Sequence[memoryview], *, retry: bool = True
    ) -> list[DatasetError | None]:
        """Fills each buffer, which is as long as its span; returns an error for each span that cannot be read.

        Args:
            retry: retry failures that may be temporary.
        """
        ...


def ends_early(path: str, span: Span, read: int) -> DatasetError:
    return DatasetError(
        f"{path}: ends at byte {span.offset + read}, but the index lists {span.size} bytes at {span.offset}; {REINDEX}"
    )


class LocalShards:
    """Tars in a local folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._paths = [os.path.join(folder, name) for name in names]
        self._handles: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, shard: int) -> str:
        """See `ShardFiles.path`."""
        return self._paths[shard]

    def read(
        self, spans: Sequence[Span], buffers: Sequence[memoryview], *, retry: bool = True
    ) -> list[DatasetError | None]:
        """See `ShardFiles.read`."""
        if len(spans) > 1:
            self._advise(spans)
        return [self._fill(span, buffer) for span, buffer in zip(spans, buffers, strict=True)]

    def _advise(self, spans: Sequence[Span]) -> None:
        """Asks the kernel to prefetch all spans, so that the reads that follow do not wait for the disk one by one."""
        for span in spans:
            try:
                descriptor = self._handle(span.shard).descriptor
                os.posix_fadvise(descriptor, span.offset, span.size, os.POSIX_FADV_WILLNEED)
            except (AttributeError, DatasetError, OSError, OverflowError):
                continue  # only a hint: the read that follows reports the error

    def _fill(self, span: Span, buffer: memoryview) -> DatasetError | None:
        read = 0
        try:
            handle = self._handle(span.shard)
            while read < span.size:
                # preadv takes the offset as an argument, so threads share a descriptor without a lock.
                more = os.preadv(handle.descriptor, [buffer[read:]], span.offset + read)
                if not more:
                    return ends_early(self.path(span.shard), span, read)
                read += more
        except DatasetError as error:
            return error
        except (OSError, OverflowError) as error:
            return DatasetError(f"{self.path(span.shard)}: cannot read at byte {span.offset + read}: {error}")
        return None

    def _handle(self, shard: int) -> _Handle:
        with self._lock:
            handle = self._handles.pop(shard, None)
            if handle is None:
                handle = _Handle(self._paths[shard])
            self._handles[shard] = handle
            # An evicted handle closes once the last thread that reads through it is done.
            if len(self._handles) > _OPEN_SHARDS:
                self._handles.popitem(last=False)
            return handle


class _Handle:
    """An open tar; closes when its last reference is gone."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DatasetError(f"{path}: cannot open: {error.strerror}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
