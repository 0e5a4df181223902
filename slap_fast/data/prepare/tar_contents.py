"""Tar contents: members of a plain tar are read in place, those of a compressed one while it is decompressed."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.tar_members import Member, compression, decompressed, iterate_members, split_key
from slap_fast.data.prepare.source import BytesAudio, FileAudio, StoredAudio, TarAudio

PLAIN_TAR = ".tar"
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tzst")
TEXTS = ("json", "txt")
_MAX_METADATA_BYTES = 64 << 20
_IN_MEMORY_BYTES = 8 << 20  # larger audio of a compressed tar goes to a temporary file
_PIECE = 1 << 20


def is_tar(path: str | os.PathLike[str]) -> bool:
    """Whether a file name is that of a tar, plain or compressed."""
    return os.fspath(path).lower().endswith((PLAIN_TAR, *COMPRESSED_TARS))


def tar_name(path: Path) -> str:
    """The file name without the extension of a tar."""
    name = path.name
    known = (suffix for suffix in (PLAIN_TAR, *COMPRESSED_TARS) if name.lower().endswith(suffix))
    return name[: -len(next(known))] if is_tar(name) else path.stem


def tars_in(folder: Path) -> list[Path]:
    """The plain tars of a folder in order; compressed ones only if there is no plain one."""
    tars = sorted(path for path in folder.iterdir() if is_tar(path) and not path.name.startswith("."))
    return [path for path in tars if path.suffix == PLAIN_TAR] or tars


class TarContents(Protocol):
    """Members of a tar in order, and their content: valid until the next member but one is drawn."""

    def members(self) -> Iterator[Member]:
        """Raises TarError as `iterate_members`."""
        ...

    def audio(self, member: Member) -> StoredAudio: ...

    def text(self, member: Member) -> bytes:
        """Raises DatasetError if it is larger than 64 MiB or cannot be read."""
        ...

    def forget(self, members: list[Member]) -> None:
        """Frees what is kept of members that are not needed any more."""
        ...


def open_contents(tar: Path) -> TarContents:
    """The contents of a tar; its first bytes decide whether it is compressed, not its name."""
    return _CompressedTar(tar) if compression(tar) else PlainTar(tar)


class PlainTar:
    """A tar that is not compressed."""

    def __init__(self, tar: Path) -> None:
        self._tar = tar

    def members(self) -> Iterator[Member]:
        return iterate_members(self._tar)

    def audio(self, member: Member) -> StoredAudio:
        return TarAudio(self._tar, member.offset, member.size, os.path.basename(member.name))

    def text(self, member: Member) -> bytes:
        _check_size(member)
        try:
            with open(self._tar, "rb") as file:
                return os.pread(file.fileno(), member.size, member.offset)
        except OSError as error:
            raise DatasetError(f"{member.name} cannot be read ({error.strerror})") from error

    def forget(self, members: list[Member]) -> None: ...


class _CompressedTar:
    """A compressed tar, read once from start to end. Keeps audio and texts until `forget`."""

    def __init__(self, tar: Path) -> None:
        self._tar = tar
        self._kept: dict[int, StoredAudio | bytes] = {}

    def members(self) -> Iterator[Member]:
        with decompressed(self._tar) as file:
            for member in iterate_members(self._tar, file):
                extension = split_key(member.name)[1]
                if member.problem:
                    pass
                elif extension in TEXTS:
                    if member.size <= _MAX_METADATA_BYTES:
                        self._kept[member.offset] = b"".join(_pieces(file, member))
                elif f".{extension.rpartition('.')[2]}" in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS:
                    self._kept[member.offset] = self._keep_audio(file, member)
                yield member

    def audio(self, member: Member) -> StoredAudio:
        audio = self._kept[member.offset]
        assert not isinstance(audio, bytes)
        return audio

    def text(self, member: Member) -> bytes:
        _check_size(member)
        text = self._kept[member.offset]
        assert isinstance(text, bytes)
        return text

    def forget(self, members: list[Member]) -> None:
        for member in members:
            self._kept.pop(member.offset, None)

    def _keep_audio(self, file: BinaryIO, member: Member) -> StoredAudio:
        if member.size <= _IN_MEMORY_BYTES:
            return BytesAudio(b"".join(_pieces(file, member)))
        extension = os.path.splitext(member.name)[1]
        try:
            with tempfile.NamedTemporaryFile(prefix="slap-fast-", suffix=extension, delete=False) as temporary:
                audio = _TemporaryAudio(Path(temporary.name))
                # Removed with the last reference in this process, and at its end.
                weakref.finalize(audio, _remove, temporary.name)
                for piece in _pieces(file, member):
                    temporary.write(piece)
        except OSError as error:
            raise DatasetError(
                f"{self._tar}: {member.name} ({member.size} bytes) cannot be unpacked to {tempfile.gettempdir()} "
                f"({error.strerror}); make room, or set TMPDIR to another folder"
            ) from error
        return audio


class _TemporaryAudio(FileAudio):
    """A temporary file; in another process, which must not remove it, a plain FileAudio."""

    def __reduce__(self) -> tuple[Any, ...]:
        return FileAudio, (self.path,)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _pieces(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """The content of a member at the position of the file.

    Raises:
        EOFError: the tar ends inside it.
    """
    file.seek(member.offset, io.SEEK_SET)
    missing = member.size
    while missing:
        piece = file.read(min(_PIECE, missing))
        if not piece:
            raise EOFError
        missing -= len(piece)
        yield piece


def _check_size(member: Member) -> None:
    if member.size > _MAX_METADATA_BYTES:
        raise DatasetError(f"{member.name} has {member.size} bytes, too many for a caption file")
