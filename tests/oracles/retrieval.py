"""Cross-modal retrieval metrics, one query at a time: what `slap_fast.evaluation.retrieval` must equal.

Items of equal similarity stand in every order in turn, and the metrics are the mean.
"""

from __future__ import annotations

from itertools import permutations, product
from statistics import fmean, median


def query_scores(similarity: list[float], relevant: set[int]) -> dict[str, float]:
    """Recalls, average precision and best rank of one query, by the mean over all orders of ties."""
    outcomes: dict[str, list[float]] = {}
    groups = [[item for item, value in enumerate(similarity) if value == level] for level in sorted(set(similarity))]
    for orders in product(*(permutations(group) for group in reversed(groups))):
        ranking = [item for order in orders for item in order]
        best = 1 + min(ranking.index(item) for item in relevant)
        found, precision = 0, 0.0
        for rank, item in enumerate(ranking[:10], start=1):
            if item in relevant:
                found += 1
                precision += found / rank
        scores = {f"r{k}": float(best <= k) for k in (1, 5, 10)}
        for name, value in {**scores, "map10": precision / min(len(relevant), 10), "rank": float(best)}.items():
            outcomes.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in outcomes.items()}


def direction(similarity: list[list[float]], relevant: list[set[int]], prefix: str) -> dict[str, float]:
    """`similarity[query][item]`; queries without a relevant item do not count."""
    scores = [query_scores(row, wanted) for row, wanted in zip(similarity, relevant, strict=True) if wanted]
    metrics = {f"{prefix}_{name}": fmean(score[name] for score in scores) for name in ("r1", "r5", "r10", "map10")}
    metrics[f"{prefix}_median_rank"] = float(median(score["rank"] for score in scores))
    return metrics


def retrieval_metrics(
    similarity: list[list[float]], text_to_audio: list[int], captions: list[str] | None = None
) -> dict[str, float]:
    """`similarity[clip][caption]`; a text is relevant to each clip that has it as a caption."""
    captions = [str(text) for text in range(len(text_to_audio))] if captions is None else captions
    by_text = [list(column) for column in zip(*similarity, strict=True)]
    texts_of = [
        {captions[text] for text, clip in enumerate(text_to_audio) if clip == audio} for audio in range(len(similarity))
    ]
    clips_of = [{audio for audio, texts in enumerate(texts_of) if caption in texts} for caption in captions]
    captions_of = [{text for text, caption in enumerate(captions) if caption in texts} for texts in texts_of]
    return direction(by_text, clips_of, "t2a") | direction(similarity, captions_of, "a2t")
