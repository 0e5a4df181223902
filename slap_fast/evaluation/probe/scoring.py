"""Probe of one labeled set: fits and scores each split, and summarizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from slap_fast.data.labeled import LabeledSet, LabelError
from slap_fast.evaluation.bootstrap import RESAMPLES, confidence_interval
from slap_fast.evaluation.multi_label import multi_label_scores
from slap_fast.evaluation.probe.classifiers import LinearProbe, neighbor_scores
from slap_fast.evaluation.probe.splits import Split, choose_splits
from slap_fast.runtime.progress import progress_bar

NEIGHBORS = 10


@dataclass(frozen=True)
class ProbeScores:
    """Scores of one classifier.

    Attributes:
        mean: accuracy, or mAP of a multi-label set: the mean over splits.
        interval: 95 % bootstrap interval of `mean` over test clips.
        std: standard deviation over splits; None if there is one.
        per_split: score of each split by name.
        per_class: recall, or average precision, by class over all test clips; None without a test clip.
    """

    mean: float
    interval: tuple[float, float]
    std: float | None
    per_split: dict[str, float]
    per_class: dict[str, float | None]


@dataclass(frozen=True)
class ProbeResult:
    """
    Attributes:
        metric: `accuracy` or `map`.
        split_kind: how training and test clips were chosen.
        strengths: chosen inverse regularization strength of the linear probe, by split.
        chance: score of a classifier that guesses: 1 / classes, or the mean share of positive clips.
        majority: accuracy of always naming the most frequent class; None for multi-label sets.
        confusion: `[C][C]` number of test clips of class `row` that the linear probe takes for `column`; None for
            multi-label sets.
        warnings: what a reader of the scores must be told.
    """

    name: str
    metric: str
    clips: int
    classes: list[str]
    split_kind: str
    linear: ProbeScores
    knn: ProbeScores
    neighbors: int
    strengths: dict[str, float]
    chance: float
    majority: float | None
    confusion: list[list[int]] | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(
    features: np.ndarray,
    labeled: LabeledSet,
    clips: np.ndarray,
    *,
    test_split: str | None = None,
    neighbors: int = NEIGHBORS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> ProbeResult:
    """Fit and score a linear and a nearest-neighbor probe on the splits of `choose_splits`.

    Args:
        features: `[N, D]` float32.
        labeled: the set.
        clips: `[N]` positions of the embedded clips in `labeled.files`; the others could not be read.

    Raises:
        LabelError: the splits cannot be used, a training fold has fewer than two classes, or a test fold none.
        MissingExtraError: scikit-learn is not installed.
    """
    labeled = replace(labeled, files=[labeled.files[at] for at in clips.tolist()])
    targets = np.zeros((len(clips), len(labeled.classes)), dtype=bool)
    for row, file in enumerate(labeled.files):
        targets[row, list(file.labels)] = True
    chosen = choose_splits(labeled, test_split=test_split, seed=seed)
    for split in chosen.splits:
        if targets[split.train].any(0).sum() < 2:
            raise LabelError(f"{labeled.name}: {split.name}: the clips to train on are of fewer than two classes")
        if not targets[split.test].any():
            raise LabelError(f"{labeled.name}: {split.name}: no clip to test on has a class")
    warnings = [
        *chosen.warnings,
        *_untrained_classes(labeled, targets, chosen.splits),
        *_copies(features, chosen.splits),
    ]
    if few := [f"{split.name} ({len(split.train)})" for split in chosen.splits if len(split.train) < neighbors]:
        warnings.append(f"fewer clips to train on than {neighbors} neighbors, so all of them vote: {', '.join(few)}")
    linear: list[np.ndarray] = []
    knn: list[np.ndarray] = []
    strengths: dict[str, float] = {}
    unfinished = []
    for split in progress_bar(chosen.splits, desc=f"probe {labeled.name}", unit="split", disable=not progress):
        train, test = features[split.train], features[split.test]
        fitted = LinearProbe(train, targets[split.train], split.inner, multi_label=labeled.multi_label)
        strengths[split.name] = fitted.strength
        unfinished += [] if fitted.converged else [split.name]
        linear.append(fitted.scores(test))
        knn.append(neighbor_scores(train, targets[split.train], test, neighbors=neighbors))
    if unfinished:
        warnings.append(f"the linear probe stopped before it converged: {', '.join(unfinished)}")
    summarize = _tagging if labeled.multi_label else _classification
    tested = np.concatenate([split.test for split in chosen.splits])
    majority = None if labeled.multi_label else float(targets[tested].sum(0).max() / len(tested))
    present = targets[tested].any(0)
    chance = float(targets[tested].mean(0)[present].mean()) if labeled.multi_label else 1 / len(labeled.classes)
    confusion = None
    if not labeled.multi_label:
        predicted = np.concatenate([scores.argmax(1) for scores in linear])
        counts = np.zeros((len(labeled.classes),) * 2, dtype=np.int64)
        np.add.at(counts, (targets[tested].argmax(1), predicted), 1)
        confusion = counts.tolist()
    return ProbeResult(
        name=labeled.name,
        metric="map" if labeled.multi_label else "accuracy",
        clips=len(clips),
        classes=labeled.classes,
        split_kind=chosen.kind,
        linear=summarize(labeled.classes, targets, chosen.splits, linear, resamples),
        knn=summarize(labeled.classes, targets, chosen.splits, knn, resamples),
        neighbors=neighbors,
        strengths=strengths,
        chance=chance,
        majority=majority,
        confusion=confusion,
        warnings=warnings,
    )


def _classification(
    classes: list[str], targets: np.ndarray, splits: list[Split], found: list[np.ndarray], resamples: int
) -> ProbeScores:
    test = np.concatenate([split.test for split in splits])
    number = np.repeat(np.arange(len(splits)), [len(split.test) for split in splits])
    truth = targets[test].argmax(1)
    right = np.concatenate([scores.argmax(1) for scores in found]) == truth

    def mean_over_splits(rows: np.ndarray) -> float:
        sizes = np.bincount(rows[:, 1].astype(np.int64), minlength=len(splits))
        sums = np.bincount(rows[:, 1].astype(np.int64), rows[:, 0], len(splits))
        return float((sums[sizes > 0] / sizes[sizes > 0]).mean())

    rows = np.stack([right, number], 1)
    interval = confidence_interval(rows, statistic=mean_over_splits, resamples=resamples)
    clips = np.bincount(truth, minlength=len(classes))
    recall = np.bincount(truth, right, len(classes)) / np.maximum(clips, 1)
    per_class = {
        name: float(value) if count else None for name, value, count in zip(classes, recall, clips, strict=True)
    }
    scores = [float(right[number == at].mean()) for at in range(len(splits))]
    return _scores(splits, scores, interval, per_class)


def _tagging(
    classes: list[str], targets: np.ndarray, splits: list[Split], found: list[np.ndarray], resamples: int
) -> ProbeScores:
    def scored(rows: np.ndarray, scores: np.ndarray) -> Any:
        return multi_label_scores(torch.from_numpy(scores), torch.from_numpy(targets[rows]))

    per_split = [scored(split.test, scores) for split, scores in zip(splits, found, strict=True)]
    scores = [one.metrics()["map"] for one in per_split]
    # Resampled within each split; the interval of a mean of independent splits is narrower by the root of their number.
    bounds = np.array([one.intervals(resamples)["map"] for one in per_split])
    center, half = np.mean(scores), np.sqrt(((bounds - np.array(scores)[:, None]) ** 2).sum(0)) / len(splits)
    test = np.concatenate([split.test for split in splits])
    pooled = scored(test, np.concatenate(found))
    per_class = {
        name: float(value) if np.isfinite(value) else None
        for name, value in zip(classes, pooled.average_precision, strict=True)
    }
    interval = (max(0.0, float(center - half[0])), min(1.0, float(center + half[1])))
    return _scores(splits, scores, interval, per_class)


def _scores(
    splits: list[Split],
    scores: list[float],
    interval: tuple[float, float],
    per_class: dict[str, float | None],
) -> ProbeScores:
    return ProbeScores(
        mean=float(np.mean(scores)),
        interval=interval,
        std=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        per_split={split.name: score for split, score in zip(splits, scores, strict=True)},
        per_class=per_class,
    )


def _untrained_classes(labeled: LabeledSet, targets: np.ndarray, splits: list[Split]) -> list[str]:
    found = []
    for split in splits:
        missing = np.flatnonzero(targets[split.test].any(0) & ~targets[split.train].any(0))
        if len(missing):
            names = ", ".join(labeled.classes[at] for at in missing.tolist())
            found.append(f"{split.name}: no clip to train on, so that all test clips are wrong: {names}")
    absent = [labeled.classes[at] for at in np.flatnonzero(targets.sum(0) == 0).tolist()]
    return [*found, *([f"classes without any clip: {', '.join(absent)}"] if absent else [])]


def _copies(features: np.ndarray, splits: list[Split]) -> list[str]:
    """Test clips whose embedding is bitwise equal to that of a training clip: most likely the same audio."""
    number: dict[bytes, int] = {}
    rows = np.array([number.setdefault(row.tobytes(), len(number)) for row in np.ascontiguousarray(features)])
    copies = sum(int(np.isin(rows[split.test], rows[split.train]).sum()) for split in splits)
    if not copies:
        return []
    return [f"{copies} test clips have an exact copy among the clips to train on, which makes scores too high"]
