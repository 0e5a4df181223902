"""Tar members: finds the byte position of each member without extracting the tar, and builds member headers."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from slap_fast.errors import SlapFastError

BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BLOCKS = 16
_MAX_HEADER_BYTES = 1 << 20  # of a long name or other attributes
_SEARCH_BYTES = 1 << 20
_STREAM_BYTES = 1 << 14  # read at once from compressed data: so much before damage is lost
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_OPENERS: dict[str, Callable[[Path], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_LINKS = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}


class TarError(SlapFastError):
    """A tar is malformed; the message gives the byte position."""


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name and byte range; `problem` is not empty if its content is not stored there (a link)."""

    name: str
    offset: int
    size: int
    problem: str = ""


def member_header(name: str, size: int) -> bytes:
    """A 512-byte ustar header, a pure function of its arguments; `name` is ASCII, at most 100 bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> int:
    """Number of zero bytes after a member of `size` bytes."""
    return -size % BLOCK


def split_key(name: str) -> tuple[str, str]:
    """Splits a member name by WebDataset's rule: `a/b.seg.flac` has key `a/b` and extension `seg.flac`."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def compression(path: Path) -> str:
    """`gzip`, `bzip2`, `xz` or `zstd` by the first bytes of a file; empty if it is none of them or cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(6)
    except OSError:
        return ""
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), "")


@contextlib.contextmanager
def decompressed(path: Path) -> Iterator[BinaryIO]:
    """A compressed file as a stream. Reading it from start to end takes constant memory.

    Raises:
        TarError: it is compressed by a program whose files are not read, damaged or cut off; also while it is read.
    """
    kind = compression(path)
    opener = _OPENERS.get(kind)
    if opener is None:
        raise TarError(f"compressed by {kind}, which is not read; decompress it, or compress it by gzip")
    try:
        with opener(path) as raw, io.BufferedReader(raw, _STREAM_BYTES) as file:
            yield cast(BinaryIO, file)
    except EOFError as error:
        raise TarError("truncated: the compressed data ends too early") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise TarError(f"damaged: {error}") from error
    except OSError as error:
        raise TarError(f"cannot be read ({error.strerror or error})") from error


def iterate_members(path: Path, file: BinaryIO | None = None) -> Iterator[Member]:
    """Yields the files of a tar, in order, reading only headers, with constant memory. Skips folders.

    Concatenated tars are read to the end of the last one.

    Args:
        path: the tar; it is not compressed unless `file` is given.
        file: the tar as a stream (`decompressed`). The caller may read from it, forward.

    Raises:
        TarError: after the intact members, if the tar is truncated, compressed, or has a damaged header.
    """
    try:
        with contextlib.ExitStack() as stack:
            length = math.inf if file else path.stat().st_size
            file = file or stack.enter_context(open(path, "rb"))
            tar = stack.enter_context(tarfile.open(fileobj=_Headers(file), mode="r:"))
            while True:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]
                    if info.size < 0 or (
                        info.isreg() and info.offset_data + info.size > length and not info.issparse()
                    ):
                        raise TarError(f"truncated: member {info.name!r} at byte {info.offset} ends beyond the file")
                    if not info.isdir():
                        yield Member(info.name, info.offset_data, info.size, _problem(info))
                # tarfile stops without an error at a damaged header. A valid end is zeros or the end of the file.
                end = tar.offset
                file.seek(end)
                if file.read(BLOCK).strip(b"\0"):
                    raise TarError(f"malformed: no member header at byte {end}")
                following = _after_zeros(file, end)
                if following is None:
                    return
                tar.offset = following
    except FileNotFoundError as error:
        raise TarError("missing") from error
    except OSError as error:
        raise TarError(f"cannot be read ({error.strerror or error})") from error
    except RecursionError as error:
        raise TarError("malformed: hundreds of headers for one member") from error
    except (tarfile.TarError, ValueError, OverflowError, LookupError) as error:
        raise TarError(f"malformed or compressed ({error}); only plain tars are read") from error


class _Headers(io.RawIOBase):
    """Tar file object for tarfile that bounds reads: tarfile would allocate any size a header claims for a name."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise TarError(f"malformed: a member name or its attributes of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _problem(info: tarfile.TarInfo) -> str:
    if info.issparse():
        return "stored as a sparse file (`tar -S`); pack it again without -S"
    if not info.isreg():
        kind = _LINKS.get(info.type)
        return (
            f"{kind} to {info.linkname}; pack it again with `tar -h --hard-dereference`"
            if kind
            else "not a regular file"
        )
    return ""


def _after_zeros(file: BinaryIO, place: int) -> int | None:
    """Position of the first block at or after `place` that is not zero; None if there is none."""
    file.seek(place)
    while block := file.read(_SEARCH_BYTES):
        if (zeros := len(block) - len(block.lstrip(b"\0"))) < len(block):
            return place + zeros // BLOCK * BLOCK
        place += len(block)
    return None


def member_name(read: Callable[[int, int], bytes], offset: int) -> str:
    """The name of the member whose bytes start at `offset`; `read(offset, size)` reads from the tar."""
    start = offset - BLOCK
    name = _header(read, start).name
    if len(name) < 100 and name.isascii() and "?" not in name:
        return name
    # A name that does not fit ustar is in an extension member before the header: find the header of that member.
    for blocks in range(1, _MAX_NAME_BLOCKS):
        begin = start - (blocks + 1) * BLOCK
        if begin < 0:
            break
        try:
            info = _header(read, begin)
        except TarError:
            continue
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME) and -(-info.size // BLOCK) == blocks:
            return _long_name(info.type, read(begin + BLOCK, info.size)) or name
    return name


def _header(read: Callable[[int, int], bytes], offset: int) -> tarfile.TarInfo:
    if offset < 0:
        raise TarError("no space for a member header before the audio")
    try:
        return tarfile.TarInfo.frombuf(read(offset, BLOCK), "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise TarError(f"no member header at byte {offset} ({error})") from error


def _long_name(kind: bytes, data: bytes) -> str | None:
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            return None
        field, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if field == b"path":
            return value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return None
