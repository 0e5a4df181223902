"""Zero-shot classification: the class whose prompt embedding is most similar to the clip (CLIP, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.labeled_layouts import labeled_rows, published_table
from slap_fast.data.prepare.source import Rejection
from slap_fast.data.prepare.table_folders import SPLIT_WORDS
from slap_fast.data.prepare.table_rows import TABLE_EXTENSIONS
from slap_fast.errors import SlapFastError
from slap_fast.models.arguments import split_texts

TEMPLATES = ("{}", "the sound of {}", "a recording of {}", "{} can be heard")

_FOLD = re.compile(r"folds?[ _-]?\d+", re.IGNORECASE)


class TextEncoder(Protocol):
    def encode_text(self, texts: list[str]) -> Tensor: ...


class LabelError(SlapFastError, ValueError):
    """A labeled set of clips, or a prompt template, that cannot be used."""


def labeled_files(source: str | Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """List audio files and their classes.

    Args:
        source: a folder with one subfolder per class, searched recursively; the folder of ESC-50 or UrbanSound8K, or
            its audio folder; or a table with a column of files (`file`, `filename` or `path`, relative to the table)
            and one of classes (`class`, `label` or `category`).

    Returns:
        `(file, class index)` in a fixed order, and the sorted class names, with underscores replaced by spaces.

    Raises:
        FileNotFoundError: `source` does not exist.
        LabelError: fewer than two classes, no file, a table without those columns, a row without a file or class, a
            file of two classes, or folds, splits or numbers instead of class names.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or CSV")
    table = source if source.is_file() else published_table(source)
    named = _from_folders(source) if table is None else _from_table(table)
    if not named:
        raise LabelError(
            f"{source}: no labeled audio; give a folder with one subfolder per class, or a CSV of files and classes"
        )
    names = sorted({name for _, name in named})
    if len(names) < 2:
        raise LabelError(f"{source}: only the class {names[0]!r}; classification needs at least two")
    if all(name.isdecimal() for name in names):
        raise LabelError(f"{source}: the classes are numbers ({', '.join(names[:5])}); use class names")
    _check_one_class_per_file(source, named)
    number = {name: index for index, name in enumerate(names)}
    return [(path, number[name]) for path, name in named], names


def class_embeddings(
    model: TextEncoder, names: str | Sequence[str], templates: str | Sequence[str] = TEMPLATES
) -> Tensor:
    """`[C, D]` L2-normalized mean, for each class, of the L2-normalized embeddings of its name in each template.

    Raises:
        LabelError: no template, or one without `{}` for the class name.
    """
    names, templates = split_texts(names), split_texts(templates)
    if not templates:
        raise LabelError("no template; give at least one, such as 'the sound of {}'")
    for template in templates:
        if "{}" not in template:
            raise LabelError(f"template {template!r} has no {{}} for the class name")
    texts = [template.replace("{}", name) for name in names for template in templates]
    embeddings = torch.nn.functional.normalize(model.encode_text(texts).float(), dim=1)
    return torch.nn.functional.normalize(embeddings.unflatten(0, (len(names), len(templates))).mean(1), dim=1)


def zero_shot_metrics(audio: Tensor, classes: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of the most similar class, in expectation over random order of ties: constant embeddings score chance.

    Args:
        audio: `[N, D]`, L2-normalized.
        classes: `[C, D]`, L2-normalized.
        labels: `[N]` class indices.

    Returns:
        `accuracy_at_1`, `accuracy_at_5`, `mean_class_accuracy` (over the classes that have clips), `chance`,
        `clips`, `classes`.

    Raises:
        ValueError: no clips, not one label per clip, or a label out of range.
    """
    before, ties = _rank_of_label(audio, classes, labels)
    correct, among_five = (((k - before) / ties.double()).clamp(0, 1) for k in (1, 5))
    counts = torch.bincount(labels, minlength=len(classes))
    per_class = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, labels, correct) / counts
    return {
        "accuracy_at_1": float(correct.mean()),
        "accuracy_at_5": float(among_five.mean()),
        "mean_class_accuracy": float(per_class[counts > 0].mean()),
        "chance": 1 / len(classes),
        "clips": float(len(audio)),
        "classes": float(len(classes)),
    }


def confusion_matrix(audio: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """`[C, C]` int64: number of clips of class `row` predicted as class `column`; ties go to the first class."""
    _rank_of_label(audio, classes, labels)
    predicted = _similarity(audio, classes).argmax(1)
    cells = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
    return cells.unflatten(0, (len(classes), len(classes)))


def _similarity(audio: Tensor, classes: Tensor) -> Tensor:
    # Rounded from float64, so that equal embeddings have exactly equal similarities.
    return (audio.double() @ classes.double().T).float()


def _rank_of_label(audio: Tensor, classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`[N]` int64 each: number of classes more similar than the clip's own, and equally similar, including its own."""
    if not len(audio) or labels.shape != (len(audio),):
        raise ValueError(
            f"{len(audio)} embeddings and labels of shape {tuple(labels.shape)}; each clip needs one label"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise ValueError(
            f"labels range from {int(labels.min())} to {int(labels.max())}; there are {len(classes)} classes"
        )
    similarity = _similarity(audio, classes)
    own = similarity.gather(1, labels.unsqueeze(1))
    return (similarity > own).sum(1), (similarity == own).sum(1)


def _from_folders(source: Path) -> list[tuple[Path, str]]:
    named = [
        (path, folder.name)
        for folder in sorted(source.iterdir())
        if folder.is_dir()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS
    ]
    names = {name for _, name in named}
    for kind, hint, fits in (
        ("folds", "give the table of files and classes", _FOLD.fullmatch),
        ("splits", "give one of these folders", lambda name: name.lower() in SPLIT_WORDS),
    ):
        if names and all(map(fits, names)):
            listed = ", ".join(sorted(names))
            raise LabelError(f"{source}: its folders are {kind}, not classes ({listed}); {hint}")
    return [(path, name.replace("_", " ")) for path, name in named]


def _from_table(source: Path) -> list[tuple[Path, str]]:
    if source.suffix.lower() not in TABLE_EXTENSIONS:
        raise LabelError(f"{source}: neither a folder nor one of {', '.join(sorted(TABLE_EXTENSIONS))}")
    named = []
    try:
        for origin, found in labeled_rows([source]):
            if isinstance(found, Rejection):
                raise LabelError(f"{source.parent / origin}: {found.detail}")
            path, name, row = found
            if isinstance(row.get("audio"), (dict, bytes)):
                raise LabelError(f"{source.parent / origin}: its audio is inside the table; write it to files")
            named.append((path, name))
    except DatasetError as error:
        raise LabelError(str(error)) from error
    return named


def _check_one_class_per_file(source: Path, named: Sequence[tuple[Path, str]]) -> None:
    seen: dict[Path, str] = {}
    for path, name in named:
        if seen.setdefault(path, name) != name:
            raise LabelError(f"{source}: {path} has the classes {seen[path]!r} and {name!r}; keep one of its rows")
