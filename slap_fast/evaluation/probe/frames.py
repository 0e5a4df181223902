"""Frame-level probe: sound events over time from dense features, one linear classifier per event class.

Scores are segment-based, with the definition of sed_eval (Mesaros et al., 2016): a class is active in a segment of one
second if any of its events overlaps it, and F1 counts true and false positives of all clips and segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from slap_fast.data.format.index import ClipIndex
from slap_fast.data.labeled import LabelError
from slap_fast.errors import MissingExtraError
from slap_fast.evaluation.bootstrap import RESAMPLES, confidence_interval
from slap_fast.evaluation.event_segments import EventTiming, f1_score, micro_f1, segment_counts
from slap_fast.evaluation.localization import EventSpan, events_of
from slap_fast.evaluation.multi_label import multi_label_scores
from slap_fast.evaluation.probe.classifiers import LinearProbe
from slap_fast.inference.audio_inputs import Skipped, dataset_inputs, read_ahead
from slap_fast.models.slap import SLAP
from slap_fast.runtime.progress import progress_bar

THRESHOLD = 0.5
MAX_TRAINING_FRAMES = 300_000
_HELD_OUT = 5  # one of this many training clips, to choose the regularization


@dataclass(frozen=True)
class FrameScores:
    """
    Attributes:
        segment_f1: over all classes, clips and segments (micro average).
        interval: its 95 % bootstrap interval over clips.
        segment_f1_macro: mean over classes of their F1.
        per_class_f1: segment F1 by class; None without a segment of it in the truth and in the prediction.
        auroc: mean over classes of the area under the ROC curve of their frames.
        per_class_auroc: None for a class that is in no frame, or in all.
        always_f1: `segment_f1` of a classifier that names every class in every segment.
        training_frames: number of frames that the probe was fitted to.
        skipped: clips that could not be read.
        warnings: what a reader of the scores must be told.
    """

    segment_f1: float
    interval: tuple[float, float]
    segment_f1_macro: float
    per_class_f1: dict[str, float | None]
    auroc: float
    per_class_auroc: dict[str, float | None]
    always_f1: float
    strength: float
    training_clips: int
    training_frames: int
    test_clips: int
    skipped: list[Skipped]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Clip:
    """Dense features and annotated events of one clip."""

    features: np.ndarray  # [F, D] float32
    events: list[EventSpan]
    seconds: float


def frame_probe(
    model: SLAP,
    train: ClipIndex,
    test: ClipIndex,
    *,
    threshold: float = THRESHOLD,
    max_frames: int = MAX_TRAINING_FRAMES,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> FrameScores:
    """Fit a logistic regression to the frames of one prepared dataset, and score events in the clips of another.

    The metadata of the clips have `events` as `events_of` reads them. The strength of regularization is chosen by the
    cross-entropy of frames of a fifth of the training clips.

    Args:
        threshold: probability from which on a class is active in a frame.
        max_frames: of more training frames, as many as this are drawn, evenly over the clips.

    Raises:
        LabelError: no annotated events, fewer than two classes, fewer than two training clips, or no clip of a dataset
            could be read.
        MissingExtraError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise MissingExtraError('probes need scikit-learn: pip install "slap-fast[eval]"')
    names = sorted({event.text for clip in dataset_inputs(train) for event in events_of(clip.metadata())})
    if len(names) < 2:
        raise LabelError(
            f"{train.location}: its clips have {len(names) or 'no'} class of events; a frame-level probe needs at "
            "least two, in a list `events` of `event`, `onset` and `duration` in the metadata of the clips"
        )
    mel = model.config.mel
    frame_seconds = model.config.audio.patch_frames * mel.hop_length / mel.sample_rate
    timing = EventTiming(frame_seconds, {name: at for at, name in enumerate(names)})
    skipped: list[Skipped] = []
    warnings: list[str] = []

    share = min(1.0, max_frames / max(1.0, float(np.ceil(np.round(train.durations / frame_seconds, 3)).sum())))
    rng = np.random.default_rng(seed)
    features, targets = [], []
    for clip in _clips(model, train, skipped, "train", progress):
        count = max(1, round(share * len(clip.features)))
        rows = np.sort(rng.choice(len(clip.features), count, replace=False))
        features.append(clip.features[rows])
        targets.append(timing.frames(clip.events, len(clip.features))[rows])
    if len(features) < 2:
        raise LabelError(f"{train.location}: {len(features)} of its clips could be read; a probe needs at least two")
    frames = sum(map(len, features))
    if share < 1:
        warnings.append(f"fitted to {frames} frames, {100 * share:.1f} % of the training clips (--max-frames)")
    order = rng.permutation(len(features)) % min(_HELD_OUT, len(features))
    fold = np.repeat(order, [len(rows) for rows in features])
    inner = [(np.flatnonzero(fold != 0), np.flatnonzero(fold == 0))]  # one split: there are many frames
    fitted = LinearProbe(np.concatenate(features), np.concatenate(targets), inner, multi_label=True, calibrated=True)
    if not fitted.converged:
        warnings.append("the linear probe stopped before it converged")

    unknown: dict[str, int] = {}
    scores, truth, counts = [], [], []
    for clip in _clips(model, test, skipped, "test", progress):
        for event in clip.events:
            if event.text not in timing.number:
                unknown[event.text] = unknown.get(event.text, 0) + 1
        known = replace(clip, events=[event for event in clip.events if event.text in timing.number])
        scores.append(fitted.scores(known.features))
        truth.append(timing.frames(known.events, len(known.features)))
        expected = timing.true_segments(known.events, known.seconds)
        found = timing.predicted_segments(scores[-1] >= threshold, known.seconds)
        counts.append(segment_counts(expected, found))
    if not scores:
        raise LabelError(f"{test.location}: none of its clips could be read")
    if not any(rows.any() for rows in truth):
        raise LabelError(f"{test.location}: its clips have no event of a class that {train.location} has")
    if unknown:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items()))
        warnings.append(f"events of classes without any training clip are not scored: {listed}")
    per_clip = np.stack(counts)  # [N, 4, C]: true and false positives, false negatives, inactive segments
    by_class = f1_score(per_clip.sum(0))
    overall = per_clip.sum(2)
    ranked = multi_label_scores(torch.from_numpy(np.concatenate(scores)), torch.from_numpy(np.concatenate(truth)))
    hits, _, missed, inactive = overall.sum(0)
    return FrameScores(
        segment_f1=micro_f1(overall),
        interval=confidence_interval(overall, statistic=micro_f1, resamples=resamples),
        segment_f1_macro=float(np.nanmean(by_class)),
        per_class_f1=_by_name(names, by_class),
        auroc=float(np.nanmean(ranked.auroc)),
        per_class_auroc=_by_name(names, ranked.auroc),
        always_f1=float(f1_score(np.array([hits + missed, inactive, 0]))),
        strength=fitted.strength,
        training_clips=len(features),
        training_frames=frames,
        test_clips=len(scores),
        skipped=skipped,
        warnings=warnings,
    )


def _clips(model: SLAP, index: ClipIndex, skipped: list[Skipped], name: str, progress: bool) -> Iterator[_Clip]:
    rate = model.config.mel.sample_rate
    inputs = dataset_inputs(index)
    with progress_bar(total=len(inputs), desc=name, unit="clip", disable=not progress) as bar:
        for clip, waveform in read_ahead(inputs, rate, skipped):
            (features,) = model.encode_audio([waveform], sampling_rate=rate, dense=True)
            bar.update()
            yield _Clip(features.numpy(), events_of(clip.metadata()), len(waveform) / rate)


def _by_name(names: list[str], values: np.ndarray) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in zip(names, values, strict=True)}
