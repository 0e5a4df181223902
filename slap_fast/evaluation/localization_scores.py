"""Scores of locating events by text, without training, on clips whose metadata have the times of their events.

Every class of the dataset is a query for every clip, as `slap-fast locate` would run it: also classes that a clip does
not have, so that a model which finds everything everywhere scores badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from slap_fast.data.labeled import LabelError
from slap_fast.evaluation.bootstrap import RESAMPLES, confidence_interval
from slap_fast.evaluation.event_segments import EventTiming, f1_score, micro_f1, segment_counts
from slap_fast.evaluation.localization import events_of
from slap_fast.evaluation.multi_label import multi_label_scores
from slap_fast.inference.audio_inputs import AudioInput, Skipped, describe_nothing_read, read_ahead
from slap_fast.inference.locate.events import EventRule, active_columns
from slap_fast.inference.locate.finding import locate
from slap_fast.models.slap import SLAP
from slap_fast.runtime.progress import progress_bar


@dataclass(frozen=True)
class LocalizationScores:
    """
    Attributes:
        segment_f1: over all classes, clips and segments of one second (micro average).
        interval: its 95 % bootstrap interval over clips; None without resamples.
        precision: of the same segments.
        recall: of the same segments.
        segment_f1_of_present: the same for the classes that a clip has: how well times are found if one knows what to
            look for.
        found_where_absent: share of pairs of a clip and a class that it does not have in which an event is found.
        auroc: mean over classes of the area under the ROC curve of their columns, by probability.
        always_f1: `segment_f1` of finding every class in every segment.
        clips: that were scored.
        classes: names of the events.
        rule: how events were made of probabilities.
    """

    segment_f1: float
    interval: tuple[float, float] | None
    precision: float
    recall: float
    segment_f1_of_present: float
    found_where_absent: float
    auroc: float
    always_f1: float
    clips: int
    classes: list[str]
    rule: EventRule

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score_localization(
    model: SLAP,
    clips: Sequence[AudioInput],
    *,
    rule: EventRule | None = None,
    resamples: int = RESAMPLES,
    progress: bool = False,
) -> tuple[LocalizationScores, list[Skipped]]:
    """Locate every class of a dataset's events in every clip, and compare with the annotated times.

    Args:
        clips: with `events` in their metadata, as `events_of` reads them; clips without any are scored, too.
        rule: None: the default of `slap-fast locate`.

    Returns:
        The scores, and the clips that could not be read.

    Raises:
        LabelError: no clip has events, or none can be read.
        ModelError: the model was trained without the contrastive objective.
    """
    model.require("text_encoder")
    rule = rule or EventRule()
    events = {clip.name: events_of(clip.metadata()) for clip in clips}
    classes = sorted({event.text for own in events.values() for event in own})
    if not classes:
        raise LabelError(
            "no clip has annotated events: a list `events` of `event`, `onset` and `duration` in its metadata"
        )
    column = model.config.column_seconds
    timing = EventTiming(column, {name: number for number, name in enumerate(classes)})
    skipped: list[Skipped] = []
    probabilities, truth, counts, present_counts, absent = [], [], [], [], np.zeros(2)
    with progress_bar(total=len(clips), desc="locating", unit="clip", disable=not progress) as bar:
        for clip, waveform in read_ahead(clips, model.config.mel.sample_rate, skipped):
            found = locate(model, [waveform], classes, rule=rule)
            own = events[clip.name]
            probabilities.append(found.probability)
            truth.append(timing.frames(own, len(found.probability)))
            active = np.stack(
                [active_columns(curve, column, rule, found.seconds) for curve in found.probability.T], axis=1
            )
            expected = timing.true_segments(own, found.seconds)
            predicted = timing.predicted_segments(active, found.seconds)
            counts.append(segment_counts(expected, predicted).sum(1))
            present = expected.any(0)
            present_counts.append(segment_counts(expected[:, present], predicted[:, present]).sum(1))
            absent += [predicted[:, ~present].any(0).sum(), (~present).sum()]
            bar.update()
    if not counts:
        raise LabelError(describe_nothing_read(skipped))
    rows = np.stack(counts)  # [N, 4]
    hits, wrong, missed, inactive = rows.sum(0).tolist()
    ranked = multi_label_scores(
        torch.from_numpy(np.concatenate(probabilities)), torch.from_numpy(np.concatenate(truth))
    )
    interval = confidence_interval(rows, statistic=micro_f1, resamples=resamples) if resamples else None
    scores = LocalizationScores(
        segment_f1=micro_f1(rows),
        interval=interval,
        precision=hits / max(1, hits + wrong),
        recall=hits / max(1, hits + missed),
        segment_f1_of_present=micro_f1(np.stack(present_counts)),
        found_where_absent=float(absent[0] / max(1.0, absent[1])),
        auroc=float(np.nanmean(ranked.auroc)),
        always_f1=float(f1_score(np.array([hits + missed, inactive, 0]))),
        clips=len(rows),
        classes=classes,
        rule=rule,
    )
    return scores, skipped


def format_localization(scores: dict[str, Any]) -> str:
    """A table of `LocalizationScores.to_json`."""
    bounds = scores["interval"]
    interval = "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"
    lines = [
        f"locating {len(scores['classes'])} classes of events in {scores['clips']} clips, threshold "
        f"{scores['rule']['threshold']:g}",
        f"segment F1           {scores['segment_f1']:.3f}{interval}   everything everywhere: {scores['always_f1']:.3f}",
        f"precision, recall    {scores['precision']:.3f}, {scores['recall']:.3f}",
        f"F1 of present ones   {scores['segment_f1_of_present']:.3f}",
        f"found where absent   {100 * scores['found_where_absent']:.1f} %",
        f"AUROC                {scores['auroc']:.3f}   chance: 0.500",
    ]
    return "\n".join(lines)
