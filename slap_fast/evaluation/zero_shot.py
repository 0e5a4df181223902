"""Zero-shot classification: the class whose prompt embedding is most similar to the clip (CLIP, section 3.1).

A class is the normalized mean of the normalized embeddings of its prompts. Clips with several labels are ranked for
each class: see multi_label.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from slap_fast.data.labeled import LabeledSet
from slap_fast.evaluation.bootstrap import RESAMPLES, draw_counts, percentiles
from slap_fast.evaluation.multi_label import multi_label_scores
from slap_fast.evaluation.prompts import PROMPT_SETS, TEMPLATES, PromptSet
from slap_fast.inference.audio_inputs import Skipped, evenly_spaced, labeled_input
from slap_fast.inference.embed import EmbeddedAudio, Encoder, embed_audio
from slap_fast.models.texts import split_texts

LEVEL = 0.95
_BATCH = 256  # prompts encoded at a time
_WEIGHTS = 16_000_000  # resampling weights in memory at a time


class TextEncoder(Protocol):
    def encode_text(self, texts: list[str]) -> Tensor: ...


@dataclass(frozen=True)
class ZeroShotResult:
    """Scores as JSON values, and what they come from.

    Attributes:
        report: `accuracy_at_1`, ... of `zero_shot_metrics`, or `map`, ... of `MultiLabelScores.metrics`; with `layout`,
            `split`, `prompts`, `per_class`, `intervals` and `bootstrap` (its settings); for one label per clip also
            `confusion`.
        audio: the clips that were read.
        clips: the number of clips that should have been read.
    """

    report: dict[str, Any]
    audio: EmbeddedAudio
    clips: int

    @property
    def skipped(self) -> list[Skipped]:
        return self.audio.skipped


def evaluate_zero_shot(
    model: Encoder,
    labeled: LabeledSet,
    prompts: PromptSet | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    resamples: int = RESAMPLES,
    progress: bool = False,
) -> ZeroShotResult:
    """Classify the clips of `open_labeled("data/esc50")` by name, with one label per clip or several.

    Args:
        prompts: None: `default` of PROMPT_SETS.
        split: of the clips; None: the test split if the publisher gives one, else all clips.
        limit: use only this many clips, evenly spaced.
        resamples: bootstrap samples for 95 % intervals; 0: none.

    Raises:
        LabelError: no clip is of that split, or `prompts` renames a class that is not there.
        NoReadableClipError: no clip could be read.
    """
    chosen = labeled.scored(split)
    unused = len(labeled.files) - len(chosen.files)
    if limit is not None:
        chosen = replace(chosen, files=[chosen.files[at] for at in evenly_spaced(len(chosen.files), limit)])
    prompts = prompts or PROMPT_SETS["default"]
    classes = class_embeddings(model, labeled.classes, prompts)
    audio = embed_audio(model, [labeled_input(file) for file in chosen.files], progress=progress)
    labels_of = {str(file.path): file.labels for file in chosen.files}
    labels = [labels_of[clip.name] for clip in audio.inputs]
    splits = chosen.splits()
    report = {
        "layout": labeled.name,
        "split": splits[0] if len(splits) == 1 else None,
        "clips_of_other_splits": unused,
        **zero_shot_report(audio.embeddings, classes, labels, labeled, resamples=resamples),
        "prompts": prompts.describe(),
        "left_out": [{"name": item.origin, "reason": item.detail} for item in labeled.left_out],
    }
    return ZeroShotResult(report, audio, len(chosen.files))


def format_zero_shot(report: Mapping[str, Any], shown: int = 3) -> str:
    """The scores of a report in percent, its prompts, and the `shown` best and worst classes."""
    clips, classes = f"{report['clips']:.0f} clips", f"{report['classes']:.0f} classes"

    def percent(name: str) -> str:
        return "-" if report[name] is None else f"{100 * report[name]:.1f} %"

    if "map" in report:
        d_prime = "-" if report["d_prime"] is None else f"{report['d_prime']:.2f}"
        line = f"mAP {percent('map')} over {classes} and {clips} (AUROC: {percent('auroc')}; d': {d_prime}; "
        chance, score, names = "chance_map", "average_precision", {"map": "mAP", "auroc": "AUROC"}
    else:
        line = f"{percent('accuracy_at_1')} of {clips} right (top 5: {percent('accuracy_at_5')}; "
        line += f"mean of {classes}: {percent('mean_class_accuracy')}; "
        chance, score = "chance", "accuracy"
        names = {"accuracy_at_1": "right", "accuracy_at_5": "top 5", "mean_class_accuracy": "mean of classes"}
    lines = [f"zero-shot: {line}chance: {percent(chance)})"]
    if bounds := report.get("intervals"):
        shown_bounds = [
            f"{title} [{100 * bounds[name][0]:.1f}, {100 * bounds[name][1]:.1f}]"
            for name, title in names.items()
            if name in bounds
        ]
        lines.append(f"  95 % intervals: {', '.join(shown_bounds)}")
    prompts = report["prompts"]
    lines.append(f"  prompts {prompts['name']!r}: {', '.join(map(repr, prompts['templates']))}")
    if report["split"] is not None:
        lines.append(
            f"  split {report['split']!r}; {report['clips_of_other_splits']} clips of other splits are not used"
        )
    ranked = [(name, own[score]) for name, own in report["per_class"].items() if own[score] is not None]
    ranked.sort(key=lambda pair: -pair[1])
    for title, part in (("best", ranked[:shown]), ("worst", ranked[: -shown - 1 : -1])):
        if len(ranked) > 2 * shown:
            lines.append(f"  {title} classes: {', '.join(f'{name} {100 * value:.1f} %' for name, value in part)}")
    if empty := [name for name, own in report["per_class"].items() if not own["clips"]]:
        lines.append(f"  not in the means, without a clip: {', '.join(empty)}")
    if left_out := report["left_out"]:
        first = left_out[0]
        lines.append(f"  not used: {len(left_out)}; the first: {first['name']} ({first['reason']})")
    return "\n".join(lines)


def class_embeddings(
    model: TextEncoder, names: str | Sequence[str], prompts: PromptSet | str | Sequence[str] = TEMPLATES
) -> Tensor:
    """`[C, D]` L2-normalized mean, for each class, of the L2-normalized embeddings of its prompts.

    Args:
        prompts: a prompt set, or templates with `{}` for the class name.

    Raises:
        LabelError: no template, one without `{}`, or a prompt set that renames a class that is not there.
    """
    names = split_texts(names)
    if not isinstance(prompts, PromptSet):
        prompts = PromptSet("templates", tuple(split_texts(prompts)))
    prompts.check_classes(names)
    prompts_of = [prompts.prompts(name) for name in names]
    texts = [text for own in prompts_of for text in own]
    encoded = [model.encode_text(texts[at : at + _BATCH]).float().cpu() for at in range(0, len(texts), _BATCH)]
    embeddings = torch.nn.functional.normalize(torch.cat(encoded), dim=1)
    means = torch.stack([own.mean(0) for own in embeddings.split([len(own) for own in prompts_of])])
    return torch.nn.functional.normalize(means, dim=1)


def zero_shot_report(
    audio: Tensor, classes: Tensor, labels: Sequence[Sequence[int]], labeled: LabeledSet, *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Scores of N embedded clips, in total and per class, with intervals; see `ZeroShotResult`.

    Args:
        audio: `[N, D]`, L2-normalized.
        classes: `[C, D]`, L2-normalized.
        labels: the class numbers of each of the N clips.
        labeled: gives the class names, and whether a clip may have several.
    """
    if labeled.multi_label:
        return _multi_label_report(audio, classes, labels, labeled.classes, resamples)
    numbers = torch.tensor([own[0] for own in labels])
    before, ties = _rank_of_label(audio, classes, numbers)
    right = ((1 - before) / ties.double()).clamp(0, 1)
    counts = torch.bincount(numbers, minlength=len(classes))
    sums = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, numbers, right)
    per_class = {
        name: {"clips": int(count), "accuracy": float(total / count) if count else None}
        for name, count, total in zip(labeled.classes, counts, sums, strict=True)
    }
    return {
        **zero_shot_metrics(audio, classes, numbers),
        **_accuracy_intervals(audio, classes, numbers, resamples),
        "per_class": per_class,
        "confusion": {"classes": labeled.classes, "counts": confusion_matrix(audio, classes, numbers).tolist()},
    }


def _multi_label_report(
    audio: Tensor, classes: Tensor, labels: Sequence[Sequence[int]], names: Sequence[str], resamples: int
) -> dict[str, Any]:
    targets = torch.zeros(len(audio), len(classes), dtype=torch.bool)
    for clip, own in enumerate(labels):
        targets[clip, list(own)] = True
    scores = multi_label_scores(_similarity(audio, classes), targets)
    per_class = {
        name: {
            "clips": int(scores.positives[at]),
            "average_precision": _finite(scores.average_precision[at]),
            "auroc": _finite(scores.auroc[at]),
        }
        for at, name in enumerate(names)
    }
    report: dict[str, Any] = {name: _finite(value) for name, value in scores.metrics().items()}
    if resamples:
        report["intervals"] = {name: list(bounds) for name, bounds in scores.intervals(resamples, level=LEVEL).items()}
        report["bootstrap"] = {"resamples": resamples, "level": LEVEL, "seed": 0}
    return {**report, "per_class": per_class}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _accuracy_intervals(audio: Tensor, classes: Tensor, labels: Tensor, resamples: int) -> dict[str, Any]:
    """Intervals over clips; the mean over classes takes those that a resample has clips of."""
    if not resamples:
        return {}
    before, ties = _rank_of_label(audio, classes, labels)
    correct = torch.stack([((k - before) / ties.double()).clamp(0, 1) for k in (1, 5)], dim=1)  # [N, 2]
    members = torch.nn.functional.one_hot(labels, len(classes)).double()  # [N, C]
    values: list[Tensor] = []
    for counts in draw_counts(len(labels), resamples, 0, chunk=max(1, _WEIGHTS // len(labels))):
        weights = torch.from_numpy(counts).double()  # [R, N]
        # 0 / 0 for a class without a clip in the resample.
        per_class = (weights * correct[:, 0]) @ members / (weights @ members)
        values.append(torch.cat([weights @ correct / len(labels), per_class.nanmean(1, keepdim=True)], dim=1))
    names = ("accuracy_at_1", "accuracy_at_5", "mean_class_accuracy")
    samples = torch.cat(values).numpy()
    return {
        "intervals": {name: list(percentiles(samples[:, at], LEVEL)) for at, name in enumerate(names)},
        "bootstrap": {"resamples": resamples, "level": LEVEL, "seed": 0},
    }


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
