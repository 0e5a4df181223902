"""The names, the record type and the atomic writes of a dataset folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.errors import SlapFastError
from slap_fast.runtime.durable_files import replace_file

FORMAT_VERSION = 1
SAMPLE_RATE = 16_000
INDEX_NAME = "index.npy"
DURATIONS_NAME = "durations.bin"
INFO_NAME = "dataset.json"
REPORT_NAME = "report.jsonl"
TOKENIZER_NAME = "tokenizer"
STATE_FOLDER = ".prepare"

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # position in dataset.json's list of shards
        ("audio_offset", "<u8"),  # of the FLAC bytes in the tar
        ("audio_size", "<u4"),
        ("meta_offset", "<u8"),  # of the JSON bytes in the tar
        ("meta_size", "<u4"),
        ("samples", "<u8"),  # at sample_rate
        ("sample_rate", "<u4"),
        ("captions", "<u2"),
    ]
)


class DatasetError(SlapFastError):
    """A dataset folder, or a file that goes into one, is not what it should be; the message names it and the cure."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failed write (a full disk, a quota, a read-only mount) into a DatasetError that names the file."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot write: {error.strerror or error}. Finished shards are safe: make room, then run the same "
            "command again to continue"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` and keeps a second run out of it; the lock dies with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be made or opened ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DatasetError(f"{folder}: another `slap-fast prepare` is writing here") from error
    finally:
        os.close(descriptor)


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """`replace_file`, whose failures say which file and why."""
    with writing(path):
        replace_file(path, chunks)


def write_json(path: Path, value: dict[str, Any]) -> None:
    # backslashreplace gives a file name that is not UTF-8 a JSON escape.
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, [text.encode("utf-8", "backslashreplace")])


def write_index(path: Path, parts: Iterable[np.ndarray], clips: int) -> None:
    """Writes `parts` (`[n]` INDEX_DTYPE each, `clips` records in all) as one .npy file, a part in memory at a time."""

    def chunks() -> Iterator[bytes]:
        header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (clips,)}
        buffer = _Buffer()
        np.lib.format.write_array_header_1_0(buffer, header)
        yield bytes(buffer)
        for part in parts:
            yield part.tobytes()

    write_atomically(path, chunks())


class _Buffer(bytearray):
    def write(self, data: bytes) -> None:
        self.extend(data)
