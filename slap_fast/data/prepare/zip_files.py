"""Audio inside zip archives, read without unpacking them."""

from __future__ import annotations

import contextlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slap_fast.audio.audio_source import AudioSource
from slap_fast.audio.errors import AudioError
from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.audio.reader import open_audio
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.file_search import AudioFinder, audio_stem, walk_folder
from slap_fast.data.prepare.source import FileAudio, TarAudio
from slap_fast.errors import one_line

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_PART = re.compile(r"\.(z\d\d+|zip\.\d{3,})", re.IGNORECASE)


@dataclass(frozen=True)
class ZipAudio:
    """A member of a zip, stored or deflated.

    Attributes:
        offset: of its local header.
        stored_size: bytes in the zip.
        size: bytes of the file.
        deflated: compressed; if not, it is read in place.
    """

    path: Path
    offset: int
    stored_size: int
    size: int
    deflated: bool
    crc: int

    @contextlib.contextmanager
    def open(self) -> Iterator[AudioSource]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                header = file.read(_LOCAL_HEADER.size)
                magic, name, extra = _LOCAL_HEADER.unpack(header) if len(header) == _LOCAL_HEADER.size else (b"", 0, 0)
                if magic != b"PK\3\4":
                    raise AudioError("unreadable", f"{self.path}: no member at byte {self.offset}; the zip is damaged")
                start = self.offset + _LOCAL_HEADER.size + name + extra
                data = b""
                if self.deflated:
                    file.seek(start)
                    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
                    data = unpacker.decompress(file.read(self.stored_size), self.size + 1)
                    if len(data) != self.size or zlib.crc32(data) != self.crc:
                        raise AudioError(
                            "unreadable", f"{self.path}: a member has another checksum; the zip is damaged"
                        )
        except (OSError, zlib.error) as error:
            raise AudioError("unreadable", f"{self.path} ({one_line(error)})") from error
        with open_audio(data) if self.deflated else TarAudio(self.path, start, self.size).open() as sound:
            yield sound


class ZipAudioFinder:
    """Finds audio files below a folder, and inside the zips below it, by name.

    Attributes:
        root: the folder.
        parts: zips below it that are split into parts, which cannot be read; relative to the root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts: list[str] = []
        self._files = AudioFinder(root)
        self._zipped: dict[str, ZipAudio] = {}

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Paths relative to the root, by `audio_stem`; those in a zip are `{zip}/{member}`. Files come first."""
        found = {stem: list(files) for stem, files in self._files.by_stem.items()}
        files = walk_folder(self.root)[0]
        joined = {Path(file).parent for file in files if _is_zip(file) and not _is_split(self.root / file)}
        for file in files:
            if not _is_zip(file):
                continue
            if _is_split(self.root / file):
                if Path(file).parent not in joined:
                    self.parts.append(file)
                continue
            for member, audio in _members(self.root / file):
                name = f"{file}/{member}"
                found.setdefault(audio_stem(member.rpartition("/")[2]), []).append(name)
                self._zipped[name] = audio
        return found

    def audio(self, file: str) -> FileAudio | ZipAudio:
        """The audio of a path in `by_stem`, or of another path relative to the root."""
        return self._zipped.get(file) or FileAudio(self.root / file)

    def is_zipped(self, file: str) -> bool:
        return file in self._zipped


def join_hint(root: Path, part: str) -> str:
    """What to do with a zip that is split into parts."""
    path = root / part
    return (
        f"{path} is split into parts (.z01, ...); join them first: "
        f"`zip -s 0 '{path}' --out '{path.with_name(f'{path.stem}_joined.zip')}'`, or unpack them: `7z x '{path}'`"
    )


def _is_zip(file: str) -> bool:
    return file.lower().endswith(".zip")


def _is_split(path: Path) -> bool:
    """Whether other parts are beside it; the number of the disk in its last record decides if they are not."""
    if any(_PART.fullmatch(other.name[len(path.stem) :]) for other in path.parent.glob(f"{_escaped(path.stem)}.z*")):
        return True
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 22 - 65535))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        return end >= 0 and tail[end + 4 : end + 6] not in (b"\0\0", b"\xff\xff", b"")
    return False


def _escaped(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _members(path: Path) -> Iterator[tuple[str, ZipAudio]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                extension = Path(member.filename).suffix.lower()
                if member.is_dir() or extension not in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS:
                    continue
                if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    how = "encrypted" if member.flag_bits & 1 else f"packed by method {member.compress_type}"
                    raise DatasetError(f"{path}: {member.filename} is {how}, which is not read; unpack the zip first")
                yield (
                    member.filename,
                    ZipAudio(
                        path,
                        member.header_offset,
                        member.compress_size,
                        member.file_size,
                        member.compress_type == zipfile.ZIP_DEFLATED,
                        member.CRC,
                    ),
                )
    except (zipfile.BadZipFile, OSError) as error:
        raise DatasetError(f"{path}: not a readable zip ({one_line(error)}); download it again") from error
