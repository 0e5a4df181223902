"""`durations.bin`: how long every clip of a dataset is, and nothing else, for what must look at all of them.

The index takes 42 bytes a clip, 4.6 GB for 109 million, and checking it takes as long as reading it. This file takes
four. It is written beside an index that has been checked, bears a fingerprint of what it was made from and a checksum
of itself, and is made again where one of them does not match: an index with a durations file of its own needs no
further check.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from slap_fast.data.format.dataset_files import DURATIONS_NAME, INDEX_NAME

logger = logging.getLogger(__name__)

_MAGIC = b"slapdur2"
_HEADER_BYTES = 64
_CHECKSUM_BYTES = 4  # at the end of the header: CRC-32, which is as fast as the file is read
_PIECE = 1 << 20
_SECONDS = np.dtype("<f4")
# Of a large index so many blocks, evenly spread, are looked at; a small one is read whole.
_BLOCKS = 64
_BLOCK_BYTES = 4096


def read_durations(folder: Path, shards: list[dict[str, Any]], clips: int) -> np.ndarray | None:
    """Memory-maps `[clips]` float32 seconds; None where the folder has no such file, or one of another index."""
    path = folder / DURATIONS_NAME
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
            if header == _MAGIC + index_digest(folder, shards) + _checksum(file):
                return _map(file, clips)
    except (OSError, ValueError):
        # Missing, unreadable, or cut short.
        pass
    return None


def write_durations(
    folder: Path, shards: list[dict[str, Any]], clips: int, parts: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """Writes the durations of an index and memory-maps them, as `read_durations` will.

    Any number of processes may do so at once: the file is whole when it appears, and they all write the same. Where the
    folder cannot be written, the durations go to a temporary file that ends with the process.

    Args:
        parts: gives `[n]` INDEX_DTYPE each, the records of the index from first to last, already checked.
    """
    path = folder / DURATIONS_NAME
    header = _MAGIC + index_digest(folder, shards)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "w+b") as file:
            try:
                _fill(file, header, parts())
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            return _map(file, clips)
    except OSError as error:
        logger.warning(
            "%s: cannot write: %s. Every start reads the whole index until one may write there",
            path,
            error.strerror or error,
        )
    with tempfile.TemporaryFile() as file:
        _fill(file, header, parts())
        return _map(file, clips)


def _fill(file: IO[bytes], header: bytes, parts: Iterable[np.ndarray]) -> None:
    file.write(header + bytes(_CHECKSUM_BYTES))
    checksum = 0
    for part in parts:
        seconds = (part["samples"] / part["sample_rate"]).astype(_SECONDS).tobytes()
        checksum = zlib.crc32(seconds, checksum)
        file.write(seconds)
    file.seek(len(header))
    file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))
    file.flush()


def _checksum(file: IO[bytes]) -> bytes:
    """Of the rest of a file."""
    checksum = 0
    while piece := file.read(_PIECE):
        checksum = zlib.crc32(piece, checksum)
    return checksum.to_bytes(_CHECKSUM_BYTES, "little")


def _map(file: IO[bytes], clips: int) -> np.ndarray:
    """
    Raises:
        ValueError: the file has another size.
    """
    size = os.fstat(file.fileno()).st_size
    if size != _HEADER_BYTES + clips * _SECONDS.itemsize:
        raise ValueError(f"{size} bytes are not the durations of {clips} clips")
    return np.memmap(file, _SECONDS, "r", offset=_HEADER_BYTES, shape=(clips,))


def index_digest(folder: Path, shards: list[dict[str, Any]]) -> bytes:
    """What tells an index from others: every shard's size and length, and a sample of the records themselves."""
    digest = hashlib.blake2b(digest_size=_HEADER_BYTES - len(_MAGIC) - _CHECKSUM_BYTES)
    digest.update(json.dumps(shards, sort_keys=True).encode())
    with open(folder / INDEX_NAME, "rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.digest()


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    size = os.fstat(file.fileno()).st_size
    yield size.to_bytes(8, "little")
    if size <= _BLOCKS * _BLOCK_BYTES:
        yield file.read()
        return
    for start in np.linspace(0, size - _BLOCK_BYTES, _BLOCKS).astype(np.int64):
        yield os.pread(file.fileno(), _BLOCK_BYTES, int(start))
