"""The tars of a dataset as bytes at offsets: those of a local folder here, others in `slap_fast.data.format.remote`."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from slap_fast.data.format.dataset_files import DatasetError

REINDEX = "if the tars are good, `slap-fast prepare --reindex` on the folder rebuilds the index; else prepare it again"
_OPEN_SHARDS = 256


class Span(NamedTuple):
    """A stretch of a tar, by its number in the dataset's list."""

    shard: int
    offset: int
    size: int


class ShardFiles(Protocol):
    """Reads tars; safe to share between threads."""

    def path(self, shard: int) -> str:
        """Where the tar lies, for a message."""
        ...

    def read(
        self, spans: Sequence[Span], buffers: Sequence[memoryview], *, patient: bool = True
    ) -> list[DatasetError | None]:
        """Fill each buffer, which is as long as its span; what is wrong, for each span that could not be read.

        Args:
            patient: try again what may have failed by chance.
        """
        ...


def ends_early(path: str, span: Span, read: int) -> DatasetError:
    return DatasetError(
        f"{path}: ends at byte {span.offset + read}, before the {span.size} bytes at {span.offset} that the index "
        f"promises; {REINDEX}"
    )


class LocalShards:
    """Tars in a folder of this machine."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._paths = [os.path.join(folder, name) for name in names]
        self._handles: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, shard: int) -> str:
        """See `ShardFiles.path`."""
        return self._paths[shard]

    def read(
        self, spans: Sequence[Span], buffers: Sequence[memoryview], *, patient: bool = True
    ) -> list[DatasetError | None]:
        """See `ShardFiles.read`."""
        if len(spans) > 1:
            self._announce(spans)
        return [self._fill(span, buffer) for span, buffer in zip(spans, buffers, strict=True)]

    def _announce(self, spans: Sequence[Span]) -> None:
        """Lets the system fetch all spans at once: read one by one, each would wait for the storage."""
        for span in spans:
            try:
                descriptor = self._handle(span.shard).descriptor
                os.posix_fadvise(descriptor, span.offset, span.size, os.POSIX_FADV_WILLNEED)
            except (AttributeError, DatasetError, OSError, OverflowError):
                # A hint; reading tells what is wrong.
                continue

    def _fill(self, span: Span, buffer: memoryview) -> DatasetError | None:
        read = 0
        try:
            handle = self._handle(span.shard)
            while read < span.size:
                # preadv takes the offset along, so threads share a descriptor without a lock.
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
            # An evicted handle closes when the last thread that reads through it lets go.
            if len(self._handles) > _OPEN_SHARDS:
                self._handles.popitem(last=False)
            return handle


class _Handle:
    """An open tar that closes with its last reference."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DatasetError(f"{path}: cannot open: {error.strerror}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
