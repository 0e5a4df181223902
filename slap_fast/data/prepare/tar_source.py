"""Tar source: WebDataset tars. Plain ones are read in place by their headers, compressed ones as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.captions import captions_of
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.tar_members import Member, TarError, split_key
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.data.prepare.sidecars import parse_sidecar
from slap_fast.data.prepare.source import ClipItem, Rejection
from slap_fast.data.prepare.tar_contents import TEXTS, TarContents, open_contents, tar_name


@dataclass
class Sample:
    """Consecutive members of a tar that share a key: one clip.

    Attributes:
        members: by extension.
        unreadable: members without content, such as links.
    """

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    unreadable: list[Member] = field(default_factory=list)

    @property
    def audio(self) -> Member | None:
        """The first audio file, else the first file of other media."""
        for extensions in (AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS):
            for extension, member in self.members.items():
                if f".{extension.rpartition('.')[2]}" in extensions:
                    return member
        return None


def iterate_samples(members: Iterator[Member]) -> Iterator[Sample]:
    """Groups the members of a tar by key, as WebDataset does.

    Raises:
        TarError: after the intact samples, if the tar is malformed.
    """
    sample: Sample | None = None
    damage: TarError | None = None
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
        if member.problem:
            sample.unreadable.append(member)
        else:
            sample.members[extension] = member
    # Also before a damaged member: those read so far are intact.
    if sample is not None:
        yield sample
    if damage is not None:
        raise damage


class TarSource:
    """WebDataset tars: audio in any format, captions from .json and .txt members."""

    def __init__(self, tars: Sequence[Path], folder: Path | None = None) -> None:
        """
        Args:
            tars: in order.
            folder: where they were found; its other files are reported.
        """
        self.name = tar_name(tars[0]) if len(tars) == 1 else tars[0].resolve().parent.name
        self.seen = 0
        self._tars = list(tars)
        self._beside: list[Rejection] = []
        if folder is not None:
            files, self._beside = walk_folder(folder)
            names = {str(tar.relative_to(folder)) for tar in tars}
            detail = "in a folder of .tar files, which were read; give other files as a separate source"
            self._beside += [Rejection(file, "beside_tars", detail) for file in files if file not in names]

    def describe(self) -> dict[str, Any]:
        tars = [[str(tar.resolve()), tar.stat().st_size if tar.exists() else None] for tar in self._tars]
        return {"kind": "webdataset", "tars": tars}

    def count(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.seen = 0
        for tar in self._tars:
            contents = open_contents(tar)
            try:
                for sample in iterate_samples(contents.members()):
                    self.seen += len(sample.members) + len(sample.unreadable)
                    yield from _items(tar, contents, sample)
                    contents.forget(list(sample.members.values()))
            except TarError as error:
                self.seen += 1
                yield Rejection(str(tar), "malformed_tar", f"{error}; the rest of this tar is lost")
        self.seen += len(self._beside)
        yield from self._beside


def _items(tar: Path, contents: TarContents, sample: Sample) -> Iterator[ClipItem | Rejection]:
    """The clip of a sample, or its Rejection, then a Rejection for every unused member."""
    audio = sample.audio
    texts = {name: member for name, member in sample.members.items() if name in TEXTS}
    if audio is not None:
        yield _clip(tar, contents, sample, audio, texts)
    elif texts:
        yield Rejection(f"{tar.name}/{sample.key}", "no_audio", f"only members {', '.join(sample.members)}", len(texts))
    yield from unused_members(tar, sample)


def unused_members(tar: Path, sample: Sample) -> Iterator[Rejection]:
    """Rejections for the members of a sample that are neither its audio nor its captions."""
    audio = sample.audio
    for name, member in sample.members.items():
        if name not in TEXTS and member is not audio:
            yield _unused(tar, sample, f".{name.rpartition('.')[2]}", member, audio)
    for member in sample.unreadable:
        yield Rejection(f"{tar.name}/{member.name}", "no_content", member.problem)


def _unused(tar: Path, sample: Sample, extension: str, member: Member, audio: Member | None) -> Rejection:
    origin = f"{tar.name}/{member.name}"
    if extension in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS:
        assert audio is not None
        detail = (
            f"the clip {sample.key!r} already has audio, {audio.name}: a WebDataset key ends at the first dot of the "
            "base name; rename one of them"
        )
        return Rejection(origin, "same_key", detail)
    return Rejection(origin, "unused_member", f"only audio, .json and .txt are used; this is a {extension} file")


def _clip(
    tar: Path, contents: TarContents, sample: Sample, audio: Member, texts: dict[str, Member]
) -> ClipItem | Rejection:
    captions: list[str] = []
    metadata: dict[str, Any] = {}
    seen = 1 + len(texts)
    try:
        for extension in TEXTS:
            if (member := texts.get(extension)) is not None:
                found, metadata_found = parse_sidecar(member.name, contents.text(member))
                captions += found
                metadata |= metadata_found
    except DatasetError as error:
        return Rejection(f"{tar.name}/{sample.key}", "bad_metadata", str(error), seen)
    origin = f"{tar.name}/{audio.name}"
    return ClipItem(sample.key, captions_of(captions), contents.audio(audio), origin, metadata, seen)
