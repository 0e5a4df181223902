"""Labeled set: audio files with class labels, and the folds and splits of their publisher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from slap_fast.data.prepare.source import Rejection
from slap_fast.errors import SlapFastError

TEST_SPLITS = frozenset({"test", "testing", "eval", "evaluation"})


class LabelError(SlapFastError, ValueError):
    """A labeled set of clips, or a prompt template, that cannot be used."""


@dataclass(frozen=True)
class LabeledFile:
    """One clip.

    Attributes:
        path: the audio file; with `read`, a name for messages, unique in the set.
        labels: positions in `LabeledSet.classes`, ascending; exactly one unless the set is multi-label.
        fold: as published, or None.
        split: as published (`train`, `eval`, ...), or None.
        group: what must stay together in a split of clips: the recording or the speaker; None: not known.
        read: the bytes of an audio file that is inside a table or a dataset; None: `path` is an audio file.
        note: a known defect of the published file, for messages.
    """

    path: Path
    labels: tuple[int, ...]
    fold: int | None = None
    split: str | None = None
    group: str | None = None
    read: Callable[[], bytes] | None = field(default=None, compare=False)
    note: str | None = None


@dataclass(frozen=True)
class LabeledSet:
    """Clips of one classification dataset, in a fixed order.

    Attributes:
        name: the layout (`esc50`, `fsd50k`, ...), or the name of the folder or table.
        classes: names in plain words, without underscores.
        multi_label: a clip may have any number of labels.
        left_out: files and splits that are not part of `files`, each with the reason.
    """

    name: str
    files: list[LabeledFile]
    classes: list[str]
    multi_label: bool
    left_out: list[Rejection] = field(default_factory=list)

    def splits(self) -> list[str]:
        return sorted({file.split for file in self.files if file.split is not None})

    def of_split(self, split: str) -> LabeledSet:
        """The clips of one split.

        Raises:
            LabelError: no clip is of that split.
        """
        files = [file for file in self.files if file.split == split]
        if not files:
            known = ", ".join(self.splits()) or "none"
            raise LabelError(f"{self.name}: no clip is of the split {split!r}; its splits: {known}")
        return replace(self, files=files)

    def scored(self, split: str | None = None) -> LabeledSet:
        """The clips that scores are about: those of `split`, else of the test split, else all."""
        split = self.test_split() if split is None else split
        return self if split is None else self.of_split(split)

    def test_split(self) -> str | None:
        """The split that scores are published on (one of TEST_SPLITS), or None if there is none."""
        return next((split for split in self.splits() if split.lower() in TEST_SPLITS), None)


@dataclass(frozen=True)
class NamedFile:
    """A clip with class names, before the classes of its set are numbered; the attributes of LabeledFile."""

    path: Path
    labels: tuple[str, ...]
    fold: int | None = None
    split: str | None = None
    group: str | None = None
    read: Callable[[], bytes] | None = None
    note: str | None = None


def numbered(
    source: Path,
    name: str,
    files: Sequence[NamedFile],
    *,
    classes: Sequence[str] | None = None,
    multi_label: bool = False,
    left_out: Sequence[Rejection] = (),
) -> LabeledSet:
    """A checked LabeledSet; `classes`: all of them in their published order, by default the sorted names in `files`.

    Raises:
        LabelError: no clip, fewer than two classes, numbers instead of class names, a clip of two classes in a set that
            is not multi-label, or a clip that is listed twice with other labels.
    """
    if not files:
        raise LabelError(
            f"{source}: no labeled audio; give a folder with one subfolder per class, or a CSV of files and classes"
        )
    names = sorted({label for file in files for label in file.labels}) if classes is None else list(classes)
    if len(names) < 2:
        only = f"only the class {names[0]!r}" if names else "no class"
        raise LabelError(f"{source}: {only}; classification needs at least two")
    if all(one.isdecimal() for one in names):
        raise LabelError(f"{source}: the classes are numbers ({', '.join(names[:5])}); use class names")
    number = {one: index for index, one in enumerate(names)}
    seen: dict[Path, tuple[str, ...]] = {}
    for file in files:
        if not multi_label and len(file.labels) != 1:
            raise LabelError(f"{source}: {file.path} has {len(file.labels)} classes; give each clip one")
        if seen.setdefault(file.path, file.labels) != file.labels:
            first, second = (", ".join(map(repr, labels)) for labels in (seen[file.path], file.labels))
            raise LabelError(f"{source}: {file.path} has the classes {first} and {second}; keep one of its rows")
        if unknown := [label for label in file.labels if label not in number]:
            raise LabelError(f"{source}: {file.path} has the class {unknown[0]!r}, which the class list lacks")
    numbers = [
        LabeledFile(
            file.path,
            tuple(sorted({number[label] for label in file.labels})),
            file.fold,
            file.split,
            file.group,
            file.read,
            file.note,
        )
        for file in files
    ]
    return LabeledSet(name, numbers, names, multi_label, list(left_out))


def in_words(label: str) -> str:
    """A class name with spaces instead of underscores."""
    return " ".join(label.replace("_", " ").split())
