"""Clip durations file (`durations.bin`): 4 bytes per clip, for code that has to scan all durations.

The index takes 42 bytes per clip (4.6 GB for 109 million clips), and validating it means reading all of it.
`durations.bin` is written once the index has been validated. It carries a fingerprint of the index and its own
checksum; if either does not match, the index is validated again and the file rewritten. So a matching durations file
proves that the index was validated.
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
_CHECKSUM_BYTES = 4  # CRC-32 at the end of the header; it runs as fast as the file is read
_PIECE = 1 << 20
_SECONDS = np.dtype("<f4")
# The fingerprint of a large index covers this many evenly spaced blocks; a small index is read whole.
_BLOCKS = 64
_BLOCK_BYTES = 4096


def read_durations(folder: Path, shards: list[dict[str, Any]], clips: int) -> np.ndarray | None:
    """Memory-maps `[clips]` float32 seconds; None if the file is missing, damaged, or of another index."""
    path = folder / DURATIONS_NAME
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
            if header == _MAGIC + index_digest(folder, shards) + _checksum(file):
                return _map(file, clips)
    except (OSError, ValueError):
        pass  # missing, unreadable or truncated
    return None


def write_durations(
    folder: Path, shards: list[dict[str, Any]], clips: int, parts: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """Writes the durations of an index and memory-maps them as `read_durations` does.

    Safe to run in several processes at once: the file appears atomically, and all write the same bytes. If the folder
    is read-only, the durations go to a temporary file that lasts as long as the process.

    Args:
        parts: returns the validated records of the index in order, `[n]` INDEX_DTYPE each.
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
            "%s: cannot write: %s. Until it can be written, every start reads the whole index",
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
    """CRC-32 of the rest of a file."""
    checksum = 0
    while piece := file.read(_PIECE):
        checksum = zlib.crc32(piece, checksum)
    return checksum.to_bytes(_CHECKSUM_BYTES, "little")


def _map(file: IO[bytes], clips: int) -> np.ndarray:
    """
    Raises:
        ValueError: the file size does not match the number of clips.
    """
    size = os.fstat(file.fileno()).st_size
    if size != _HEADER_BYTES + clips * _SECONDS.itemsize:
        raise ValueError(f"{size} bytes are not the durations of {clips} clips")
    return np.memmap(file, _SECONDS, "r", offset=_HEADER_BYTES, shape=(clips,))


def index_digest(folder: Path, shards: list[dict[str, Any]]) -> bytes:
    """Fingerprint of an index: a hash of the shard list and of a sample of the records."""
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
