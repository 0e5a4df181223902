"""Retrieval of a model on captioned clips: embedding, scores of both directions, intervals, relevance sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slap_fast.evaluation.bootstrap import RESAMPLES
from slap_fast.evaluation.relevance import RelevanceSets, relevance_scores, relevant_clips
from slap_fast.evaluation.retrieval import embedding_retrieval_scores
from slap_fast.inference.audio_inputs import AudioInput
from slap_fast.inference.embed import EmbeddedDataset, Encoder, embed_dataset, embed_texts

LEVEL = 0.95


@dataclass(frozen=True)
class RetrievalResult:
    """JSON values, and the embeddings that they come from.

    Attributes:
        metrics: as `retrieval_metrics`, with `intervals` (score to bounds) and `bootstrap`, its settings.
        relevance: as `RelevanceScores.metrics`, with the same two; None without relevance sets.
    """

    metrics: dict[str, Any]
    relevance: dict[str, Any] | None
    embedded: EmbeddedDataset


def evaluate_retrieval(
    model: Encoder,
    clips: Sequence[AudioInput],
    *,
    relevance: RelevanceSets | None = None,
    resamples: int = RESAMPLES,
    progress: bool = False,
) -> RetrievalResult:
    """Score a model on captioned clips, such as `dataset_inputs(ClipIndex.open("data/validation"))`.

    Args:
        relevance: also score these queries. All their files must be among `clips`.
        resamples: bootstrap samples for 95 % intervals; 0: none.

    Raises:
        NoReadableClipError: no clip could be read.
        RelevanceError: a file of `relevance` is not among `clips`.
        ValueError: the clips have no caption.
    """
    # Matched before embedding, which takes long.
    relevant = None if relevance is None else relevant_clips(relevance, [names_of(clip) for clip in clips])
    embedded = embed_dataset(model, clips, progress=progress)
    scores = embedding_retrieval_scores(embedded.audio, embedded.text, embedded.text_to_audio, embedded.captions)
    metrics: dict[str, Any] = scores.metrics() | bootstrap_entries(scores, resamples)
    judged = None
    if relevance is not None and relevant is not None:
        position = {clip.name: at for at, clip in enumerate(clips)}
        read = [position[clip.name] for clip in embedded.clips]
        queries = embed_texts(model, relevance.queries, progress=progress)
        by_query = relevance_scores(embedded.audio, queries, relevant, read)
        judged = by_query.metrics() | bootstrap_entries(by_query, resamples)
    return RetrievalResult(metrics, judged, embedded)


def bootstrap_entries(scores: Any, resamples: int) -> dict[str, Any]:
    """`intervals` and `bootstrap` of scores with a method `intervals`; empty for no resamples."""
    if not resamples:
        return {}
    return {
        "intervals": {name: list(bounds) for name, bounds in scores.intervals(resamples, level=LEVEL).items()},
        "bootstrap": {"resamples": resamples, "level": LEVEL, "seed": 0},
    }


def names_of(clip: AudioInput) -> list[str]:
    """The names of a clip for `relevant_clips`: its key, and its file at the source."""
    source = clip.metadata().get("source")
    return [clip.name, source] if isinstance(source, str) else [clip.name]
