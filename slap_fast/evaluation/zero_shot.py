"""Zero-shot classification: a clip's class is the one whose described name lies nearest to it (CLIP, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.source import Rejection
from slap_fast.data.prepare.labeled_layouts import labeled_rows, published_table
from slap_fast.data.prepare.table_folders import SPLIT_WORDS
from slap_fast.data.prepare.table_rows import TABLE_EXTENSIONS
from slap_fast.errors import SlapFastError
from slap_fast.models.arguments import split_texts

TEMPLATES = ("{}", "the sound of {}", "a recording of {}", "{} can be heard")

_FOLD = re.compile(r"folds?[ _-]?\d+", re.IGNORECASE)


class TextEncoder(Protocol):
    def encode_text(self, texts: list[str]) -> Tensor: ...


class LabelError(SlapFastError, ValueError):
    """A labelled set of clips, or a template, that cannot be used."""


def labelled_files(source: str | Path, *, extensions: Collection[str]) -> tuple[list[tuple[Path, int]], list[str]]:
    """Audio files and their classes.

    Args:
        source: a folder with one folder a class, searched downwards; the folder of ESC-50 or UrbanSound8K, or that of
            its audio; or a table with a column of files (`file`, `filename`, `path`: relative to the table) and one of
            classes (`class`, `label`, `category`).
        extensions: suffixes with their dot, lower case, that count as audio in a folder.

    Returns:
        `(file, class number)` in a fixed order, and the class names, sorted; underscores in names become spaces.

    Raises:
        LabelError: fewer than two classes, no file, a table without those columns or with a row that lacks them, a file
            of two classes, or folds, splits or numbers in place of classes.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or CSV")
    table = source if source.is_file() else published_table(source)
    named = _from_folders(source, extensions) if table is None else _from_table(table)
    if not named:
        raise LabelError(
            f"{source}: no labelled audio; give a folder with one folder a class, or a CSV of file and class"
        )
    names = sorted({name for _, name in named})
    if len(names) < 2:
        raise LabelError(f"{source}: only the class {names[0]!r}; classification needs at least two")
    if all(name.isdecimal() for name in names):
        raise LabelError(f"{source}: the classes are numbers ({', '.join(names[:5])}); write their names out")
    _check_one_class(source, named)
    number = {name: index for index, name in enumerate(names)}
    return [(path, number[name]) for path, name in named], names


def class_embeddings(
    model: TextEncoder, names: str | Sequence[str], templates: str | Sequence[str] = TEMPLATES
) -> Tensor:
    """`[C, D]` L2-normalised mean of the L2-normalised embeddings of each class name in each template.

    Raises:
        LabelError: no template, or one without a `{}` to put the name in.
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
    """Accuracy of taking the most similar class, expected over a random order of ties: constant ones score chance.

    Args:
        audio: `[N, D]` L2-normalised. classes: `[C, D]` L2-normalised. labels: `[N]` integers below C.

    Returns:
        `accuracy_at_1`, `accuracy_at_5`, `mean_class_accuracy` over the classes that have clips, `chance`, `clips`,
        `classes`.

    Raises:
        ValueError: no clips, or shapes that do not fit.
    """
    before, ties = _places(audio, classes, labels)
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
    """`[C, C]` int64: clips of class `row` for which class `column` is the most similar, the first of several."""
    _places(audio, classes, labels)
    predicted = _similarity(audio, classes).argmax(1)
    cells = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
    return cells.unflatten(0, (len(classes), len(classes)))


def _similarity(audio: Tensor, classes: Tensor) -> Tensor:
    # Rounded from float64, so that equal embeddings tie.
    return (audio.double() @ classes.double().T).float()


def _places(audio: Tensor, classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`[N]` int64 each: classes that are more similar than a clip's own, and those as similar, itself included."""
    if not len(audio) or labels.shape != (len(audio),):
        raise ValueError(
            f"{len(audio)} embeddings and labels of shape {tuple(labels.shape)}; each clip needs one label"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; there are {len(classes)} classes"
        )
    similarity = _similarity(audio, classes)
    own = similarity.gather(1, labels.unsqueeze(1))
    return (similarity > own).sum(1), (similarity == own).sum(1)


def _from_folders(source: Path, extensions: Collection[str]) -> list[tuple[Path, str]]:
    named = [
        (path, folder.name)
        for folder in sorted(source.iterdir())
        if folder.is_dir()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in extensions
    ]
    names = {name for _, name in named}
    for what, hint, fits in (
        ("folds", "give the table of files and classes", _FOLD.fullmatch),
        ("splits", "give one of these folders", lambda name: name.lower() in SPLIT_WORDS),
    ):
        if names and all(map(fits, names)):
            listed = ", ".join(sorted(names))
            raise LabelError(f"{source}: its folders are {what}, not classes ({listed}); {hint}")
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
                raise LabelError(f"{source.parent / origin}: its audio lies inside the table; write it to files")
            named.append((path, name))
    except DatasetError as error:
        raise LabelError(str(error)) from error
    return named


def _check_one_class(source: Path, named: Sequence[tuple[Path, str]]) -> None:
    seen: dict[Path, str] = {}
    for path, name in named:
        if seen.setdefault(path, name) != name:
            raise LabelError(f"{source}: {path} is of the classes {seen[path]!r} and {name!r}; keep one row of it")
