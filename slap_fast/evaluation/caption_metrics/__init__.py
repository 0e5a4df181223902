"""Scores of generated captions against reference captions: BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE, SPIDEr and FENSE.

    metrics = caption_metrics(["a dog barks", ...], [["a dog is barking", "barking"], ...])
    metrics.scores["cider_d"], metrics.unavailable.get("spice")

BLEU, ROUGE-L and CIDEr-D are computed here, with the values of coco-caption (the pycocoevalcap package). METEOR and
SPICE are Java programs of that package. A metric that cannot be computed is in `unavailable` with the reason, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from slap_fast.errors import SlapFastError
from slap_fast.evaluation.caption_metrics.fense_metric import fense
from slap_fast.evaluation.caption_metrics.java_metrics import UnavailableError, meteor, spice
from slap_fast.evaluation.caption_metrics.ngrams import ORDER, Tokens, bleu, bleu_counts, cider_d, rouge_l
from slap_fast.evaluation.caption_metrics.tokenization import tokenize

__all__ = ["METRIC_TITLES", "CaptionMetrics", "CaptionMetricsError", "caption_metrics", "tokenize"]

METRIC_TITLES = {
    "cider_d": "CIDEr-D",
    "spice": "SPICE",
    "spider": "SPIDEr",
    "fense": "FENSE",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, ORDER + 1)},
}
"""Names of all scores, and as they are printed."""


class CaptionMetricsError(SlapFastError, ValueError):
    """Captions that cannot be scored."""


@dataclass
class CaptionMetrics:
    """Scores of N clips.

    Attributes:
        scores: by name: `bleu_1` to `bleu_4`, `rouge_l`, `cider_d`, and `meteor`, `spice`, `spider`, `fense` where they
            can be computed. In [0, 1], but CIDEr-D in [0, 10] and SPIDEr in [0, 5.5].
        per_clip: the N values of each metric. Their mean is the score; not so for BLEU and METEOR, which sum their
            counts over all clips first.
        unavailable: why a metric has no score, by name.
    """

    scores: dict[str, float] = field(default_factory=dict)
    per_clip: dict[str, list[float]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


def caption_metrics(
    generated: Sequence[str], references: Sequence[Sequence[str]], *, external: bool = True
) -> CaptionMetrics:
    """Score N generated captions.

    Args:
        generated: N captions; an empty one scores 0.
        references: one or more reference captions for each.
        external: also the metrics that run Java programs or other models, which take seconds; False: only BLEU, ROUGE-L
            and CIDEr-D.

    Raises:
        CaptionMetricsError: no captions, numbers that differ, or a clip without a reference.
    """
    if not generated or len(generated) != len(references):
        raise CaptionMetricsError(
            f"there are {len(generated)} generated captions and references of {len(references)} clips; pass at least "
            "one of each, and as many"
        )
    for clip, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise CaptionMetricsError(f"references[{clip}] is {texts!r}; pass a list of at least one reference caption")
    candidates = [tokenize(text) for text in generated]
    tokens = [[tokenize(text) for text in texts] for texts in references]
    metrics = CaptionMetrics()
    counts = bleu_counts(candidates, tokens)
    for n, (score, values) in enumerate(zip(bleu(counts.sum(0)), bleu(counts).T, strict=True), 1):
        metrics.scores[f"bleu_{n}"], metrics.per_clip[f"bleu_{n}"] = float(score), values.tolist()
    _add(metrics, "rouge_l", rouge_l(candidates, tokens))
    if len(generated) > 1:
        _add(metrics, "cider_d", cider_d(candidates, tokens))
    else:
        metrics.unavailable["cider_d"] = "it needs at least 2 clips: with one, the idf of each n-gram is 0"
    if external:
        _add_external(metrics, generated, references, candidates, tokens)
    return metrics


def _add_external(
    metrics: CaptionMetrics,
    generated: Sequence[str],
    references: Sequence[Sequence[str]],
    candidates: Sequence[Tokens],
    tokens: Sequence[Sequence[Tokens]],
) -> None:
    with _unavailable(metrics, "meteor"):
        metrics.scores["meteor"], metrics.per_clip["meteor"] = meteor(candidates, tokens)
    with _unavailable(metrics, "spice"):
        _add(metrics, "spice", np.array(spice(candidates, tokens)))
    lacking = [name for name in ("cider_d", "spice") if name not in metrics.scores]
    if lacking:
        metrics.unavailable["spider"] = f"it is the mean of CIDEr-D and SPICE; see {lacking[0]}"
    else:
        _add(metrics, "spider", (np.array(metrics.per_clip["cider_d"]) + np.array(metrics.per_clip["spice"])) / 2)
    with _unavailable(metrics, "fense"):
        _add(metrics, "fense", np.array(fense(generated, references)))


@contextmanager
def _unavailable(metrics: CaptionMetrics, name: str) -> Iterator[None]:
    try:
        yield
    except UnavailableError as error:
        metrics.unavailable[name] = str(error)


def _add(metrics: CaptionMetrics, name: str, values: np.ndarray) -> None:
    # An exact sum, whatever the order of the clips.
    metrics.scores[name], metrics.per_clip[name] = math.fsum(values) / len(values), values.tolist()
