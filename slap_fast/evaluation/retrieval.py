"""Retrieval between audio and text by the definitions of AudioCaps and Clotho: several captions a clip.

- Text to audio (t2a): every caption is a query, its own clip the one relevant item. With one relevant item, the average
  precision within the top 10 is the reciprocal rank, or 0 beyond rank 10.
- Audio to text (a2t): every clip that has a caption is a query, all of its captions are relevant. Recall and median
  rank count the best-placed one; the average precision counts all within the top 10, divided by min(captions, 10), so
  that a perfect ranking scores 1.

A tie counts against the query: irrelevant items that are exactly as similar as a relevant one stand before it. A
constant embedding therefore has the worst ranks, not the best.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
PRECISION_AT = 10
METRIC_NAMES = (*(f"r{k}" for k in RECALL_AT), f"map{PRECISION_AT}", "median_rank")


def retrieval_metrics(similarity: Tensor, text_to_audio: Tensor, *, chunk_size: int = 1024) -> dict[str, float]:
    """Metrics from a similarity matrix.

    Args:
        similarity: `[n_audio, n_text]`, higher is more alike.
        text_to_audio: `[n_text]` integers, the clip each caption describes. A clip without captions is an item to be
            told apart in t2a and no query in a2t.
        chunk_size: queries ranked at a time.

    Returns:
        `{t2a,a2t}_{r1,r5,r10,map10}` in [0, 1], `{t2a,a2t}_median_rank` from 1, what a random ranking is expected to
        score as `chance_{t2a,a2t}_{r1,r5,r10,map10}`, and the counts `clips` and `captions`.

    Raises:
        ValueError: nothing to rank, shapes that do not fit, an index out of range, or a value that is not finite.
    """
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}; it must be [n_audio, n_text]")
    _check_finite("similarity", similarity)
    n_audio, n_text = similarity.shape
    return _metrics(
        lambda audio: similarity[audio],
        lambda text: similarity[:, text].T,
        _check_targets(text_to_audio.to(similarity.device), n_audio, n_text),
        n_audio,
        chunk_size,
    )


def embedding_retrieval_metrics(
    audio: Tensor, text: Tensor, text_to_audio: Tensor, *, chunk_size: int = 1024
) -> dict[str, float]:
    """Metrics from embeddings, with no more than `chunk_size` rows of the similarity matrix at a time.

    Args:
        audio: `[n_audio, D]`, L2-normalised: the similarity is the inner product.
        text: `[n_text, D]`, L2-normalised.
        text_to_audio: as in `retrieval_metrics`, which also says what is returned and raised.
        chunk_size: queries ranked at a time.
    """
    if audio.ndim != 2 or text.ndim != 2 or audio.shape[1] != text.shape[1]:
        raise ValueError(
            f"audio has shape {tuple(audio.shape)} and text {tuple(text.shape)}; "
            "they must be [n_audio, D] and [n_text, D]"
        )
    _check_finite("audio", audio)
    _check_finite("text", text)
    # Products in float64, rounded to float32: equal embeddings then tie, whatever the order in which BLAS adds.
    audio, text = audio.double(), text.to(audio.device).double()
    return _metrics(
        lambda clips: (audio[clips] @ text.T).float(),
        lambda captions: (text[captions] @ audio.T).float(),
        _check_targets(text_to_audio.to(audio.device), len(audio), len(text)),
        len(audio),
        chunk_size,
    )


def format_retrieval(metrics: dict[str, float]) -> str:
    """An aligned table of both directions, in per cent but for the median rank, with chance under each."""
    rows = [("", "R@1", "R@5", "R@10", "mAP@10", "median rank")]
    for direction, title in (("t2a", "text to audio"), ("a2t", "audio to text")):
        for prefix, label in ((direction, title), (f"chance_{direction}", "  chance")):
            values = [metrics.get(f"{prefix}_{name}") for name in METRIC_NAMES]
            shares = [f"{100 * value:.1f}" for value in values[:-1] if value is not None]
            rows.append((label, *shares, "" if values[-1] is None else f"{values[-1]:g}"))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
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


def _metrics(
    similarity_of_audio: Callable[[Tensor], Tensor],
    similarity_of_text: Callable[[Tensor], Tensor],
    text_to_audio: Tensor,
    n_audio: int,
    chunk_size: int,
) -> dict[str, float]:
    n_text, device = len(text_to_audio), text_to_audio.device
    captions_of, has_caption = _captions_by_clip(text_to_audio, n_audio)
    queries = has_caption.any(1).nonzero().squeeze(1)

    text_ranks, best_ranks, precisions = [], [], []
    for text in torch.arange(n_text, device=device).split(chunk_size):
        scores = similarity_of_text(text)  # [Q, n_audio]
        own = scores.gather(1, text_to_audio[text].unsqueeze(1))
        text_ranks.append((scores >= own).sum(1))
    for audio in queries.split(chunk_size):
        scores = similarity_of_audio(audio)  # [Q, n_text]
        ranks = _ranks_of_captions(scores, captions_of[audio], has_caption[audio])  # [Q, C]
        best_ranks.append(ranks[:, 0])
        found = torch.arange(1, ranks.shape[1] + 1, device=device)
        precision = (found / ranks.double()).where(has_caption[audio] & (ranks <= PRECISION_AT), 0.0).sum(1)
        precisions.append(precision / has_caption[audio].sum(1).clamp(max=PRECISION_AT))

    ranks_t2a = torch.cat(text_ranks)
    reciprocal = (1.0 / ranks_t2a.double()).where(ranks_t2a <= PRECISION_AT, 0.0)
    counts = has_caption.sum(1)[queries]
    return {
        **_summarise("t2a", ranks_t2a, reciprocal),
        **_summarise("a2t", torch.cat(best_ranks), torch.cat(precisions)),
        **_chance("t2a", torch.ones_like(text_to_audio), n_audio),
        **_chance("a2t", counts, n_text),
        "clips": float(n_audio),
        "captions": float(n_text),
    }


def _captions_by_clip(text_to_audio: Tensor, n_audio: int) -> tuple[Tensor, Tensor]:
    """`[n_audio, C]` caption numbers of each clip, filled up with 0, and which of them are real."""
    counts = torch.bincount(text_to_audio, minlength=n_audio)
    has_caption = torch.arange(int(counts.max()), device=counts.device) < counts.unsqueeze(1)
    captions_of = torch.zeros_like(has_caption, dtype=torch.int64)
    captions_of[has_caption] = text_to_audio.argsort(stable=True)
    return captions_of, has_caption


def _ranks_of_captions(scores: Tensor, captions: Tensor, has_caption: Tensor) -> Tensor:
    """`[Q, C]` ascending ranks of each query's own captions among all of `scores` `[Q, n_text]`.

    `captions` and `has_caption` are `[Q, C]` as `_captions_by_clip` gives them; where there is no caption, the rank
    means nothing.
    """
    own = scores.gather(1, captions).masked_fill(~has_caption, -torch.inf).sort(1, descending=True).values
    ranks = []
    for place, value in enumerate(own.unbind(1), start=1):
        at_least = (scores >= value.unsqueeze(1)).sum(1)
        own_at_least = (own >= value.unsqueeze(1)).sum(1)
        ranks.append(at_least - own_at_least + place)
    return torch.stack(ranks, 1)


def _summarise(prefix: str, ranks: Tensor, precision: Tensor) -> dict[str, float]:
    middle = ranks.sort().values[[(len(ranks) - 1) // 2, len(ranks) // 2]]
    return {
        **{f"{prefix}_r{k}": float((ranks <= k).double().mean()) for k in RECALL_AT},
        f"{prefix}_map{PRECISION_AT}": float(precision.mean()),
        f"{prefix}_median_rank": float(middle.double().mean()),
    }


def _chance(prefix: str, relevant: Tensor, n_items: int) -> dict[str, float]:
    """What a random ranking of `n_items` is expected to score where query q has `relevant[q]` relevant items."""
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
