"""Zero-shot classification: a clip's class is the one whose described name lies nearest to it (CLIP, section 3.1)."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

TEMPLATES = ("{}", "the sound of {}", "a recording of {}", "{} can be heard")

_FILE_COLUMNS = ("file", "filename", "file_name", "path", "audio")
_CLASS_COLUMNS = ("class", "label", "category", "class_name")


class TextEncoder(Protocol):
    def encode_text(self, texts: list[str]) -> Tensor: ...


class LabelError(ValueError):
    """A labelled set of clips, or a template, that cannot be used."""


def labelled_files(source: str | Path, *, extensions: Collection[str]) -> tuple[list[tuple[Path, int]], list[str]]:
    """Audio files and their classes.

    Args:
        source: a folder with one folder a class, searched downwards; or a CSV with a column of files (`file`,
            `filename`, `path`: relative to the CSV) and one of classes (`class`, `label`, `category`).
        extensions: suffixes with their dot, lower case, that count as audio in a folder.

    Returns:
        `(file, class number)` in a fixed order, and the class names, sorted; underscores in names become spaces.

    Raises:
        LabelError: fewer than two classes, no file, or a CSV without those columns.
    """
    source = Path(source)
    named = _from_csv(source) if source.is_file() else _from_folders(source, extensions)
    if not named:
        raise LabelError(
            f"{source}: no labelled audio; give a folder with one folder a class, or a CSV of file and class"
        )
    names = sorted({name for _, name in named})
    if len(names) < 2:
        raise LabelError(f"{source}: only the class {names[0]!r}; classification needs at least two")
    number = {name: index for index, name in enumerate(names)}
    return [(path, number[name]) for path, name in named], names


def class_embeddings(model: TextEncoder, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """`[C, D]` L2-normalised mean of the L2-normalised embeddings of each class name in each template.

    Raises:
        LabelError: no template, or one without a `{}` to put the name in.
    """
    if not templates:
        raise LabelError("no template; give at least one, such as 'the sound of {}'")
    for template in templates:
        if "{}" not in template:
            raise LabelError(f"template {template!r} has no {{}} for the class name")
    texts = [template.replace("{}", name) for name in names for template in templates]
    embeddings = torch.nn.functional.normalize(model.encode_text(texts).float(), dim=1)
    return torch.nn.functional.normalize(embeddings.unflatten(0, (len(names), len(templates))).mean(1), dim=1)


def zero_shot_metrics(audio: Tensor, classes: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of taking the most similar class; a tie counts as a miss, so constant embeddings score 0.

    Args:
        audio: `[N, D]` L2-normalised. classes: `[C, D]` L2-normalised. labels: `[N]` integers below C.

    Returns:
        `accuracy_at_1`, `accuracy_at_5`, `mean_class_accuracy` over the classes that have clips, `chance`, `clips`,
        `classes`.

    Raises:
        ValueError: no clips, or shapes that do not fit.
    """
    ranks = _ranks(audio, classes, labels)
    correct = (ranks == 1).double()
    counts = torch.bincount(labels, minlength=len(classes))
    per_class = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, labels, correct) / counts
    return {
        "accuracy_at_1": float(correct.mean()),
        "accuracy_at_5": float((ranks <= 5).double().mean()),
        "mean_class_accuracy": float(per_class[counts > 0].mean()),
        "chance": 1 / len(classes),
        "clips": float(len(audio)),
        "classes": float(len(classes)),
    }


def confusion_matrix(audio: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """`[C, C]` int64: clips of class `row` for which class `column` is the most similar."""
    _ranks(audio, classes, labels)
    predicted = _similarity(audio, classes).argmax(1)
    cells = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
    return cells.unflatten(0, (len(classes), len(classes)))


def _similarity(audio: Tensor, classes: Tensor) -> Tensor:
    # Rounded from float64, so that equal embeddings tie.
    return (audio.double() @ classes.double().T).float()


def _ranks(audio: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    if not len(audio) or labels.shape != (len(audio),):
        raise ValueError(
            f"{len(audio)} embeddings and labels of shape {tuple(labels.shape)}; each clip needs one label"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; there are {len(classes)} classes"
        )
    similarity = _similarity(audio, classes)
    return (similarity >= similarity.gather(1, labels.unsqueeze(1))).sum(1)


def _from_folders(source: Path, extensions: Collection[str]) -> list[tuple[Path, str]]:
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder or CSV")
    return [
        (path, folder.name.replace("_", " "))
        for folder in sorted(source.iterdir())
        if folder.is_dir()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in extensions
    ]


def _from_csv(source: Path) -> list[tuple[Path, str]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or ()
        file_column = next((name for name in _FILE_COLUMNS if name in columns), None)
        class_column = next((name for name in _CLASS_COLUMNS if name in columns), None)
        if file_column is None or class_column is None:
            raise LabelError(
                f"{source}: columns are {', '.join(columns) or 'none'}; it needs one of {', '.join(_FILE_COLUMNS)} "
                f"and one of {', '.join(_CLASS_COLUMNS)}"
            )
        named = []
        for line, row in enumerate(rows, start=2):
            if not row[file_column] or not row[class_column]:
                raise LabelError(f"{source}: row {line} lacks its {file_column} or {class_column}")
            named.append((source.parent / row[file_column], row[class_column].replace("_", " ")))
    return named
