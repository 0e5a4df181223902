"""Files of a dataset folder: names, index record type, atomic writes, lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
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
PART_NAME = "part.json"
TOKENIZER_NAME = "tokenizer"
STATE_FOLDER = ".prepare"

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # position in the shard list of dataset.json
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
    """A dataset folder, or an input of `slap-fast prepare`, is missing, damaged or unusable."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Converts a failed write (full disk, quota, read-only mount) to a DatasetError that names the file."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot write: {error.strerror or error}. Finished shards are safe: make room, then run the same "
            "command again to continue"
        ) from error


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """Creates `folder` and locks it exclusively. The kernel releases the lock when the process dies.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
        OSError: the folder cannot be created or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_for_writing(folder: Path) -> Iterator[None]:
    """Creates `folder` and locks it against a second `slap-fast prepare`; raises DatasetError if that fails."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, wait=False))
        except BlockingIOError as error:
            raise DatasetError(f"{folder}: another `slap-fast prepare` is writing here") from error
        except OSError as error:
            raise DatasetError(f"{folder}: cannot be created or opened ({error.strerror})") from error
        yield


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """`replace_file`, with write errors converted to DatasetError."""
    with writing(path):
        replace_file(path, chunks)


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, [json_line(value, indent=2)])


def json_line(value: dict[str, Any], indent: int | None = None) -> bytes:
    """`value` as UTF-8 JSON and a line break."""
    # backslashreplace: a file name that is not UTF-8 becomes a JSON escape.
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_pieces(path: Path) -> Iterator[bytes]:
    """The content of a file, 1 MiB at a time."""
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def file_digest(path: Path, digest: hashlib._Hash | hashlib.blake2b) -> str:
    """The hexadecimal digest of a file; `digest` is a new hash object."""
    for piece in read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def write_index(path: Path, parts: Iterable[np.ndarray], clips: int) -> None:
    """Writes `parts` (`[n]` INDEX_DTYPE each, `clips` records in all) as one .npy file, a part at a time."""

    def chunks() -> Iterator[bytes]:
        header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (clips,)}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        yield buffer.getvalue()
        for part in parts:
            yield part.tobytes()

    write_atomically(path, chunks())
