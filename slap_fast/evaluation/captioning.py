"""Captioning of a model on captioned clips: generates a caption for each and scores them, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slap_fast.evaluation.bootstrap import RESAMPLES, confidence_interval
from slap_fast.evaluation.caption_metrics import caption_metrics
from slap_fast.inference.audio_inputs import AudioInput, Skipped
from slap_fast.inference.caption import Captioner, GeneratedCaption, generate_captions

LEVEL = 0.95
# Corpus scores, which are no mean over clips.
_NO_MEAN = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor")


@dataclass(frozen=True)
class CaptioningResult:
    """JSON values, and the captions that they come from.

    Attributes:
        report: `cider_d`, `rouge_l`, ... (see `CaptionMetrics`), `clips`, `unavailable` (metric to reason), and
            `intervals` of the scores that are means over clips, with `bootstrap`, its settings.
        captions: of the clips that were read.
        skipped: the clips that could not be read.
    """

    report: dict[str, Any]
    captions: list[GeneratedCaption]
    skipped: list[Skipped]


def evaluate_captions(
    model: Captioner, clips: Sequence[AudioInput], *, resamples: int = RESAMPLES, progress: bool = False
) -> CaptioningResult:
    """Caption clips that have reference captions, and score the captions.

    Args:
        resamples: bootstrap samples for 95 % intervals; 0: none.

    Raises:
        CaptionMetricsError: no clip could be read, or one has no reference caption.
    """
    skipped: list[Skipped] = []
    captions = list(generate_captions(model, clips, skipped, progress=progress))
    return CaptioningResult(score_captions(captions, resamples=resamples), captions, skipped)


def score_captions(captions: Sequence[GeneratedCaption], *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The `report` of `CaptioningResult`."""
    metrics = caption_metrics([one.caption for one in captions], [one.references for one in captions])
    report: dict[str, Any] = {**metrics.scores, "clips": float(len(captions)), "unavailable": metrics.unavailable}
    if resamples:
        report["intervals"] = {
            name: list(confidence_interval(np.array(values), resamples=resamples, level=LEVEL))
            for name, values in metrics.per_clip.items()
            if name not in _NO_MEAN
        }
        report["bootstrap"] = {"resamples": resamples, "level": LEVEL, "seed": 0}
    return report
