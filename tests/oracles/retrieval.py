"""Cross-modal retrieval metrics, one query at a time, by sorting: what `slap_fast.evaluation.retrieval` must equal."""

from __future__ import annotations

from statistics import median


def pessimistic_ranking(similarity: list[float], relevant: set[int]) -> list[int]:
    """Item numbers, best first; where an irrelevant item ties with a relevant one, the irrelevant one comes first."""
    return sorted(range(len(similarity)), key=lambda item: (-similarity[item], item in relevant))


def direction(similarity: list[list[float]], relevant: list[set[int]], prefix: str) -> dict[str, float]:
    """`similarity[query][item]`; queries without a relevant item do not count."""
    best_ranks, precisions = [], []
    for row, wanted in zip(similarity, relevant, strict=True):
        if not wanted:
            continue
        ranking = pessimistic_ranking(row, wanted)
        best_ranks.append(1 + min(ranking.index(item) for item in wanted))
        found, precision = 0, 0.0
        for rank, item in enumerate(ranking[:10], start=1):
            if item in wanted:
                found += 1
                precision += found / rank
        precisions.append(precision / min(len(wanted), 10))
    metrics = {f"{prefix}_r{k}": sum(rank <= k for rank in best_ranks) / len(best_ranks) for k in (1, 5, 10)}
    metrics[f"{prefix}_map10"] = sum(precisions) / len(precisions)
    metrics[f"{prefix}_median_rank"] = float(median(best_ranks))
    return metrics


def retrieval_metrics(similarity: list[list[float]], text_to_audio: list[int]) -> dict[str, float]:
    """`similarity[clip][caption]`."""
    by_text = [list(column) for column in zip(*similarity, strict=True)]
    captions_of = [
        {text for text, clip in enumerate(text_to_audio) if clip == audio} for audio in range(len(similarity))
    ]
    return direction(by_text, [{clip} for clip in text_to_audio], "t2a") | direction(similarity, captions_of, "a2t")
