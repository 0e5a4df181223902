"""Zero-shot classification: the class whose prompt embedding is most similar to the clip (CLIP, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from slap_fast.data.labeled import LabelError
from slap_fast.models.arguments import split_texts

TEMPLATES = ("{}", "the sound of {}", "a recording of {}", "{} can be heard")


class TextEncoder(Protocol):
    def encode_text(self, texts: list[str]) -> Tensor: ...


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
