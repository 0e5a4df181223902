"""Audio-text retrieval metrics as in AudioCaps and Clotho, with several captions per clip.

- Text to audio (t2a): every caption is a query, and its own clip is relevant. With one relevant item, the average
  precision within the top 10 is the reciprocal rank, or 0 beyond rank 10.
- Audio to text (a2t): every clip that has a caption is a query, and all of its captions are relevant. Recall and median
  rank use the best-ranked caption; the average precision uses all within the top 10, divided by min(relevant, 10), so
  that a perfect ranking scores 1.
- If the texts are given, a text that is a caption of several clips is relevant to each of them, in both directions.
  Texts are the same if they differ only in case, punctuation and spacing.

Ties are in random order, and the metrics are the expectation over that order (McSherry and Najork, "Computing
information retrieval performance measures efficiently in the presence of tied scores", ECIR 2008). A constant embedding
therefore scores chance, and identical items share the score of one.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slap_fast.evaluation.bootstrap import RESAMPLES, confidence_interval

RECALL_AT = (1, 5, 10)
PRECISION_AT = 10
METRIC_NAMES = (*(f"r{k}" for k in RECALL_AT), f"map{PRECISION_AT}", "median_rank")


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of every query.

    Attributes:
        per_query: `{t2a,a2t}_{r1,r5,r10,map10,median_rank}` to `[Q]` float64; the last is the rank of the best-ranked
            relevant item.
        clips: `t2a` and `a2t` to `[Q]` int64, the clip of each query: one of its captions, or itself.
        counts: `clips`, `captions`, `shared_captions` and the expected scores of a random ranking; see
            `retrieval_metrics`.
    """

    per_query: dict[str, np.ndarray]
    clips: dict[str, np.ndarray]
    counts: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """See `retrieval_metrics`."""
        # Exact sums, so that the order of the clips, which depends on the number of ranks, does not matter.
        summaries = {
            name: float(np.median(values)) if name.endswith("median_rank") else math.fsum(values) / len(values)
            for name, values in self.per_query.items()
        }
        return {**summaries, **self.counts}

    def intervals(
        self, resamples: int = RESAMPLES, *, level: float = 0.95, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals over clips of all scores; the captions of a clip are resampled together."""
        return {
            name: confidence_interval(
                values,
                statistic=_statistic(name),
                resamples=resamples,
                level=level,
                seed=seed,
                groups=self.clips[name[:3]],
            )
            for name, values in self.per_query.items()
        }


def _statistic(name: str) -> Callable[[np.ndarray], np.floating]:
    return np.median if name.endswith("median_rank") else np.mean


def retrieval_metrics(
    similarity: Tensor, text_to_audio: Tensor, captions: Sequence[str] | None = None, *, chunk_size: int = 1024
) -> dict[str, float]:
    """Metrics from a similarity matrix.

    Args:
        similarity: `[n_audio, n_text]`, higher is more alike.
        text_to_audio: `[n_text]` integers, the clip of each caption. A clip without captions is a distractor in t2a and
            not a query in a2t.
        captions: the texts, to find those that several clips share; None: all captions count as different texts.
        chunk_size: queries ranked at a time.

    Returns:
        `{t2a,a2t}_{r1,r5,r10,map10}` in [0, 1]; `{t2a,a2t}_median_rank`, 1-based; the expected scores of a random
        ranking, `chance_{t2a,a2t}_{r1,r5,r10,map10}`; and the counts `clips`, `captions` and `shared_captions`, those
        whose text is also a caption of another clip.

    Raises:
        ValueError: nothing to rank, inconsistent shapes, an index out of range, or a value that is not finite.
    """
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}; it must be [n_audio, n_text]")
    _check_finite("similarity", similarity)
    n_audio, n_text = similarity.shape
    return _scores(
        lambda audio: similarity[audio],
        lambda text: similarity[:, text].T,
        _check_targets(text_to_audio.to(similarity.device), n_audio, n_text),
        captions,
        n_audio,
        chunk_size,
    ).metrics()


def embedding_retrieval_scores(
    audio: Tensor,
    text: Tensor,
    text_to_audio: Tensor,
    captions: Sequence[str] | None = None,
    *,
    chunk_size: int = 1024,
) -> RetrievalScores:
    """Scores of every query from embeddings, with at most `chunk_size` rows of the similarity matrix in memory.

    Args:
        audio: `[n_audio, D]`, L2-normalized: the similarity is the inner product.
        text: `[n_text, D]`, L2-normalized.
        text_to_audio: as in `retrieval_metrics`, as are `captions`, `chunk_size` and the errors.
    """
    if audio.ndim != 2 or text.ndim != 2 or audio.shape[1] != text.shape[1]:
        raise ValueError(
            f"audio has shape {tuple(audio.shape)} and text {tuple(text.shape)}; "
            "they must be [n_audio, D] and [n_text, D]"
        )
    _check_finite("audio", audio)
    _check_finite("text", text)
    # float64 products rounded to float32, so that equal embeddings tie exactly in any summation order of BLAS.
    audio, text = audio.double(), text.to(audio.device).double()
    return _scores(
        lambda clips: (audio[clips] @ text.T).float(),
        lambda captions: (text[captions] @ audio.T).float(),
        _check_targets(text_to_audio.to(audio.device), len(audio), len(text)),
        captions,
        len(audio),
        chunk_size,
    )


def embedding_retrieval_metrics(
    audio: Tensor,
    text: Tensor,
    text_to_audio: Tensor,
    captions: Sequence[str] | None = None,
    *,
    chunk_size: int = 1024,
) -> dict[str, float]:
    """The metrics of `embedding_retrieval_scores`; the result is that of `retrieval_metrics`."""
    return embedding_retrieval_scores(audio, text, text_to_audio, captions, chunk_size=chunk_size).metrics()


def format_retrieval(
    metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]] | None = None, *, level: float = 0.95
) -> str:
    """An aligned table of both directions in percent (median rank excepted), with intervals and chance below each."""
    rows: list[tuple[str, ...]] = [("", "R@1", "R@5", "R@10", "mAP@10", "median rank")]
    for direction, title in (("t2a", "text to audio"), ("a2t", "audio to text")):
        rows.append((title, *_cells(metrics, direction)))
        if intervals:
            own = [intervals[f"{direction}_{name}"] for name in METRIC_NAMES]
            shares = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in own[:-1]]
            rows.append((f"  {100 * level:g} % interval", *shares, f"[{own[-1][0]:.1f}, {own[-1][1]:.1f}]"))
        rows.append(("  chance", *_cells(metrics, f"chance_{direction}")))
    return aligned(rows)


def _cells(metrics: Mapping[str, float], prefix: str) -> list[str]:
    values = [metrics.get(f"{prefix}_{name}") for name in METRIC_NAMES]
    rank = values[-1]
    return [*(f"{100 * value:.1f}" for value in values[:-1] if value is not None), "" if rank is None else f"{rank:g}"]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first column left-aligned and the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _check_finite(name: str, values: Tensor) -> None:
    if not values.numel():
        raise ValueError(f"{name} has shape {tuple(values.shape)}; there is nothing to rank")
    if not values.isfinite().all():
        row = int((~values.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{name}[{row}] is not finite; leave that item out")


def _check_targets(text_to_audio: Tensor, n_audio: int, n_text: int) -> Tensor:
    if text_to_audio.shape != (n_text,):
        raise ValueError(f"text_to_audio has shape {tuple(text_to_audio.shape)}; there are {n_text} captions")
    if text_to_audio.is_floating_point() or text_to_audio.dtype == torch.bool:
        raise ValueError(f"text_to_audio is {text_to_audio.dtype}; it must hold integers")
    outside = (text_to_audio < 0) | (text_to_audio >= n_audio)
    if outside.any():
        text = int(outside.nonzero()[0])
        raise ValueError(f"text_to_audio[{text}] is {int(text_to_audio[text])}; there are {n_audio} clips")
    return text_to_audio.long()


def _scores(
    similarity_of_audio: Callable[[Tensor], Tensor],
    similarity_of_text: Callable[[Tensor], Tensor],
    text_to_audio: Tensor,
    captions: Sequence[str] | None,
    n_audio: int,
    chunk_size: int,
) -> RetrievalScores:
    n_text, device = len(text_to_audio), text_to_audio.device
    texts = _text_ids(captions, n_text).to(device)  # [n_text]
    queries = torch.bincount(text_to_audio, minlength=n_audio).nonzero().squeeze(1)

    from_text, from_audio = [], []
    for text in torch.arange(n_text, device=device).split(chunk_size):
        relevant = _relevant_clips(texts[text], texts, text_to_audio, n_audio)  # [Q, n_audio]
        from_text.append(score_queries(similarity_of_text(text), relevant))
    for audio in queries.split(chunk_size):
        relevant = _relevant_texts(audio, texts, text_to_audio)  # [Q, n_text]
        from_audio.append(score_queries(similarity_of_audio(audio), relevant))
    return RetrievalScores(
        per_query=_per_query("t2a", from_text) | _per_query("a2t", from_audio),
        clips={"t2a": text_to_audio.cpu().numpy(), "a2t": queries.cpu().numpy()},
        counts={
            **_chance_level("t2a", torch.cat([scores.relevant for scores in from_text]), n_audio),
            **_chance_level("a2t", torch.cat([scores.relevant for scores in from_audio]), n_text),
            "clips": float(n_audio),
            "captions": float(n_text),
            "shared_captions": float(sum(int((scores.relevant > 1).sum()) for scores in from_text)),
        },
    )


def normalized_text(text: str) -> str:
    """Lower case, letters and digits with single spaces between words; the text itself if it has none of them."""
    kept = "".join(one if one.isalnum() or unicodedata.category(one)[0] == "M" else " " for one in text.casefold())
    return " ".join(unicodedata.normalize("NFC", kept).split()) or text


def _text_ids(captions: Sequence[str] | None, n_text: int) -> Tensor:
    """`[n_text]` int64: equal ids for equal texts."""
    if captions is None:
        return torch.arange(n_text)
    if len(captions) != n_text:
        raise ValueError(f"{len(captions)} captions; there are {n_text} embeddings of captions")
    numbers: dict[str, int] = {}
    return torch.tensor(
        [numbers.setdefault(text, len(numbers)) for text in map(normalized_text, captions)], dtype=torch.int64
    )


def _relevant_clips(wanted: Tensor, texts: Tensor, text_to_audio: Tensor, n_audio: int) -> Tensor:
    """`[Q, n_audio]` bool: whether a clip has the text `wanted[q]` as a caption."""
    relevant = torch.zeros(len(wanted), n_audio, dtype=torch.bool, device=wanted.device)
    query, text = (wanted.unsqueeze(1) == texts).nonzero(as_tuple=True)
    relevant[query, text_to_audio[text]] = True
    return relevant


def _relevant_texts(audio: Tensor, texts: Tensor, text_to_audio: Tensor) -> Tensor:
    """`[Q, n_text]` bool: whether the text of a caption is also a caption of clip `audio[q]`."""
    has = torch.zeros(len(audio), int(texts.max()) + 1, dtype=torch.bool, device=audio.device)
    query, text = (audio.unsqueeze(1) == text_to_audio).nonzero(as_tuple=True)
    has[query, texts[text]] = True
    return has[:, texts]


class QueryScores(NamedTuple):
    """Scores of Q queries, as expectations over the order of ties."""

    recall: Tensor  # [len(RECALL_AT), Q] float64
    precision: Tensor  # [Q] float64
    rank: Tensor  # [Q] float64, of the best-ranked relevant item
    relevant: Tensor  # [Q] int64, the number of relevant items


def score_queries(scores: Tensor, relevant: Tensor) -> QueryScores:
    """Score `[Q, n]` similarities; `relevant` `[Q, n]` bool has at least one True in each row.

    An item of similarity -inf is ranked last, and does not count as found.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    before = _count(scores > best)
    tied = scores == best
    ties, own = _count(tied), _count(tied & relevant)
    recall = torch.stack([1 - _probability_of_none(k - before, ties, own) for k in RECALL_AT]) * best.isfinite()[:, 0]
    # Expected position of the first of `own` items among `ties` in random order.
    rank = before + (ties + 1).double() / (own + 1)
    counts = _count(relevant)
    precision = precision_sum(scores, relevant, PRECISION_AT) / counts.clamp(max=PRECISION_AT)
    return QueryScores(recall, precision, rank, counts)


def _count(mask: Tensor) -> Tensor:
    """Number of True values per row: `[Q]` int64 from `[Q, n]` bool."""
    # sum() first copies the mask to its dtype; int32 halves that, the largest temporary here.
    return mask.sum(1, dtype=torch.int32).long()


def _probability_of_none(drawn: Tensor, items: Tensor, relevant: Tensor) -> Tensor:
    """`[Q]` float64: probability that `drawn` of `items`, of which `relevant` are relevant, include no relevant one."""
    missed = torch.ones_like(drawn, dtype=torch.float64)
    for place in range(max(RECALL_AT)):
        left = (items - relevant - place).clamp(min=0).double() / (items - place).clamp(min=1)
        missed = torch.where(place < drawn, missed * left, missed)
    return missed


def precision_sum(scores: Tensor, relevant: Tensor, ranks: int) -> Tensor:
    """`[Q]` float64: sum of the precisions at those of the first `ranks` ranks that hold a relevant item.

    Args:
        scores: `[Q, n]` similarities.
        relevant: `[Q, n]` bool.
    """
    top = scores.topk(min(ranks, scores.shape[1]), dim=1)
    found = relevant.gather(1, top.indices)
    last = top.values[:, -1:]
    # Ties may extend beyond the last of these ranks; all of them count.
    tied_last = scores == last
    last_ties, last_found = _count(tied_last), _count(tied_last & relevant)
    total = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    for place, value in enumerate(top.values.split(1, dim=1), start=1):
        above, tied = top.values > value, top.values == value
        before, found_before = above.sum(1), (above & found).sum(1)
        cut = (value == last).squeeze(1)
        ties = torch.where(cut, last_ties, tied.sum(1))
        own = torch.where(cut, last_found, (tied & found).sum(1))
        others = (place - before - 1) * (own - 1).double() / (ties - 1).clamp(min=1)
        total += own / ties.double() * (found_before + 1 + others) / place
    return total


def _per_query(prefix: str, chunks: Sequence[QueryScores]) -> dict[str, np.ndarray]:
    recall, precision, rank = (
        torch.cat(values, dim=-1).cpu().numpy()
        for values in zip(*((scores.recall, scores.precision, scores.rank) for scores in chunks), strict=True)
    )
    return {
        **{f"{prefix}_r{k}": values for k, values in zip(RECALL_AT, recall, strict=True)},
        f"{prefix}_map{PRECISION_AT}": precision,
        f"{prefix}_median_rank": rank,
    }


def _chance_level(prefix: str, relevant: Tensor, n_items: int) -> dict[str, float]:
    """Expected scores of a random ranking of `n_items`, where query q has `relevant[q]` relevant items."""
    relevant = relevant.double()
    missed = torch.ones_like(relevant)
    precision = torch.zeros_like(relevant)
    expected = {}
    for rank in range(1, max(*RECALL_AT, PRECISION_AT) + 1):
        if rank <= n_items:
            missed = missed * (n_items - relevant - (rank - 1)).clamp(min=0) / (n_items - rank + 1)
        if rank <= min(PRECISION_AT, n_items):
            before = (rank - 1) * (relevant - 1) / max(n_items - 1, 1)
            precision = precision + relevant / n_items * (1 + before) / rank
        if rank in RECALL_AT:
            expected[f"chance_{prefix}_r{rank}"] = float(1 - missed.mean())
    expected[f"chance_{prefix}_map{PRECISION_AT}"] = float((precision / relevant.clamp(max=PRECISION_AT)).mean())
    return expected
