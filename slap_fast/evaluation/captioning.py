"""Captioning of a model on captioned clips: generates a caption for each and scores them, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slap_fast.evaluation.bootstrap import RESAMPLES, confidence_interval
from slap_fast.evaluation.caption_metrics import METRIC_TITLES, caption_metrics
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
    model: Captioner,
    clips: Sequence[AudioInput],
    *,
    beam_size: int = 1,
    max_length: int = 64,
    resamples: int = RESAMPLES,
    progress: bool = False,
) -> CaptioningResult:
    """Caption clips that have reference captions, and score the captions.

    Args:
        model: as `SLAP`.
        clips: with `captions` in their metadata.
        beam_size: as in `SLAP.caption`.
        max_length: as in `SLAP.caption`.
        resamples: bootstrap samples for 95 % intervals; 0: none.
        progress: show a progress bar.

    Raises:
        CaptionMetricsError: no clip could be read, or one has no reference caption.
    """
    skipped: list[Skipped] = []
    captions = list(
        generate_captions(model, clips, skipped, beam_size=beam_size, max_length=max_length, progress=progress)
    )
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


def format_captioning(report: dict[str, Any]) -> str:
    """The scores of a report with their intervals, and what could not be computed."""
    lines = [f"captions of {report['clips']:.0f} clips:"]
    intervals = report.get("intervals", {})
    for name in (name for name in METRIC_TITLES if name in report):
        bounds = f"  [{intervals[name][0]:.4f}, {intervals[name][1]:.4f}]" if name in intervals else ""
        lines.append(f"  {METRIC_TITLES[name]:<8} {report[name]:.4f}{bounds}")
    lines += [f"  {METRIC_TITLES[name]:<8} not computed: {reason}" for name, reason in report["unavailable"].items()]
    return "\n".join(lines)
