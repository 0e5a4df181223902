"""Existing WebDataset tars as a source: read in place through their headers, never extracted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slap_fast.audio_files import AUDIO_EXTENSIONS
from slap_fast.data.captions import captions_of
from slap_fast.data.dataset_files import DatasetError
from slap_fast.data.ingest.clip_items import ClipItem, Rejection, TarAudio
from slap_fast.data.ingest.folders import parse_sidecar
from slap_fast.data.tar_members import Member, TarError, iterate_members, split_key

_MAX_METADATA_BYTES = 64 << 20


@dataclass
class Sample:
    """Consecutive members of a tar that share a key: one clip.

    Attributes:
        members: by extension.
    """

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def audio(self) -> Member | None:
        for extension, member in self.members.items():
            if f".{extension.rpartition('.')[2]}" in AUDIO_EXTENSIONS:
                return member
        return None


def iterate_samples(path: Path) -> Iterator[Sample]:
    """Groups a tar's members by key, as WebDataset does.

    Raises:
        TarError: after the good samples, where the tar is malformed.
    """
    sample: Sample | None = None
    damage: TarError | None = None
    members = iterate_members(path)
    while True:
        try:
            member = next(members, None)
        except TarError as error:
            member, damage = None, error
        if member is None:
            break
        key, extension = split_key(member.name)
        if sample is None or key != sample.key or extension in sample.members:
            if sample is not None:
                yield sample
            sample = Sample(key)
        sample.members[extension] = member
    # Also before damage: the members seen so far are whole.
    if sample is not None:
        yield sample
    if damage is not None:
        raise damage


class TarSource:
    """WebDataset tars: audio in any format, captions from .json and .txt members."""

    def __init__(self, tars: Sequence[Path]) -> None:
        self.name = tars[0].stem if len(tars) == 1 else tars[0].resolve().parent.name
        self._tars = list(tars)

    def describe(self) -> dict[str, Any]:
        tars = [[str(tar.resolve()), tar.stat().st_size if tar.exists() else None] for tar in self._tars]
        return {"kind": "webdataset", "tars": tars}

    def count(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        for tar in self._tars:
            try:
                for sample in iterate_samples(tar):
                    yield _item(tar, sample)
            except TarError as error:
                yield Rejection(str(tar), "malformed_tar", f"{error}; what follows in this tar is lost")


def _item(tar: Path, sample: Sample) -> ClipItem | Rejection:
    origin = f"{tar.name}/{sample.key}"
    audio = sample.audio
    if audio is None:
        return Rejection(origin, "no_audio", f"only members {', '.join(sample.members)}")
    captions: list[str] = []
    metadata: dict[str, Any] = {}
    try:
        for extension in ("json", "txt"):
            if (member := sample.members.get(extension)) is not None:
                found, metadata_found = parse_sidecar(member.name, read_member(tar, member))
                captions += found
                metadata |= metadata_found
    except DatasetError as error:
        return Rejection(origin, "bad_metadata", str(error))
    return ClipItem(
        sample.key, captions_of(captions), TarAudio(tar, audio.offset, audio.size), f"{tar.name}/{audio.name}", metadata
    )


def read_member(tar: Path, member: Member) -> bytes:
    """The bytes of a small member.

    Raises:
        DatasetError: it is larger than metadata can be, or cannot be read.
    """
    if member.size > _MAX_METADATA_BYTES:
        raise DatasetError(f"{member.name} is {member.size} bytes long, more than a caption file can be")
    try:
        with open(tar, "rb") as file:
            return os.pread(file.fileno(), member.size, member.offset)
    except OSError as error:
        raise DatasetError(f"{member.name} cannot be read ({error.strerror})") from error
