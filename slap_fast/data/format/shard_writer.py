"""Shard writer: writes WebDataset tars deterministically (equal clips give equal bytes) and atomically."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.audio.flac_encoder import Flac
from slap_fast.data.format.dataset_files import INDEX_DTYPE, SAMPLE_RATE, read_pieces, writing
from slap_fast.data.format.tar_members import member_header, padding
from slap_fast.runtime.durable_files import sync_folder

_MAX_KEY = 90  # a ustar name holds 100 bytes; the extension needs a few
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def tar_key(name: str) -> str:
    """A tar member key from any string: ASCII letters, digits, `_`, `-`, and `/` between non-empty parts; <= 90 bytes.

    WebDataset cuts a name at its first dot, and file systems disagree about other characters, so these are replaced. A
    name that changes gets a digest of the original, so that different names keep different keys.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    parts = (_UNSAFE.sub("_", part) for part in plain.replace("\\", "/").split("/"))
    key = "/".join(part for part in parts if part)
    if key and key == name and len(key) <= _MAX_KEY:
        return key
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{key[: _MAX_KEY - 13].rstrip('/') or 'clip'}-{digest}"


class KeyRegistry:
    """Assigns a unique key to every clip of a dataset, in source order. Takes 100 bytes of memory per clip."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._position = 0

    def claim(self, name: str) -> tuple[str, bool]:
        """The key for the next clip, named `name`, and whether it differs from `tar_key(name)`, which was taken."""
        self._position += 1
        wanted = key = tar_key(name)
        while (digest := _hash(key)) in self._taken:
            suffix = f"-{self._position}"
            key = key[: _MAX_KEY - len(suffix)].rstrip("/") + suffix
            self._position += 1
        self._taken.add(digest)
        return key, key != wanted


class ShardWriter:
    """Writes one tar under a hidden name; `commit` renames it once every byte is on disk.

    Attributes:
        path: final path of the tar.
        clips: number of clips so far.
        samples: their total length.
        captions: their total number of captions.

    Args:
        path: final path of the tar.
        number: position of the tar in the dataset's shard list.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self._number = number
        self.clips = 0
        self.samples = 0
        self.captions = 0
        self._records: list[tuple[int, ...]] = []
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._offset = 0
        with writing(path):
            self._file = open(self._temporary, "wb", buffering=0)  # noqa: SIM115 (closed in commit and discard)

    @property
    def size(self) -> int:
        """Size in bytes of the tar if it were committed now."""
        return _end(self._offset)

    def size_with(self, flac: Flac, metadata: bytes) -> int:
        """Size in bytes of the tar if it were committed after adding this clip."""
        return _end(self._offset + _member_bytes(flac.size) + _member_bytes(len(metadata)))

    def add(self, key: str, flac: Flac, metadata: bytes, captions: int) -> None:
        """Appends `{key}.flac` and `{key}.json`, and deletes the temporary file of a large clip.

        Raises:
            DatasetError: the tar cannot be written.
        """
        with writing(self.path):
            audio_offset = self._append(f"{key}.flac", flac.audio, flac.size)
            meta_offset = self._append(f"{key}.json", metadata, len(metadata))
        self._records.append(
            (self._number, audio_offset, flac.size, meta_offset, len(metadata), flac.samples, SAMPLE_RATE, captions)
        )
        self.clips += 1
        self.samples += flac.samples
        self.captions += captions

    def seal(self) -> np.ndarray:
        """Finishes the tar and syncs it to disk, still under its hidden name; returns `[clips]` INDEX_DTYPE records."""
        with writing(self.path):
            self._write(b"\0" * (self.size - self._offset))
            os.fsync(self._file.fileno())
            self._file.close()
        return np.array(self._records, INDEX_DTYPE)

    def commit(self) -> None:
        """Renames a sealed tar to its final name."""
        with writing(self.path):
            os.replace(self._temporary, self.path)
            sync_folder(self.path.parent)

    def discard(self) -> None:
        """Removes the tar if it was not committed."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _append(self, name: str, content: bytes | Path, size: int) -> int:
        header = member_header(name, size)
        tail = b"\0" * padding(size)
        start = self._offset + len(header)
        if isinstance(content, bytes):
            self._write(header + content + tail)
        else:
            self._write(header)
            for piece in read_pieces(content):
                self._write(piece)
            self._write(tail)
            content.unlink()
        return start

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            self._offset += written
            view = view[written:]


def encode_metadata(value: dict[str, Any]) -> bytes:
    """A clip's JSON as stored; values without a JSON form (NaN, sets, NumPy numbers) become text."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), ensure_ascii=False, default=str)
    # backslashreplace: a file name that is not UTF-8 becomes a JSON escape.
    return text.encode("utf-8", "backslashreplace")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _member_bytes(size: int) -> int:
    return tarfile.BLOCKSIZE + size + padding(size)


def _end(offset: int) -> int:
    # A tar ends with two zero blocks and is padded to a whole record.
    end = offset + 2 * tarfile.BLOCKSIZE
    return end + -end % tarfile.RECORDSIZE


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
