"""Oracle of `varlen_attention`: dense attention with an explicit mask, one sequence at a time, in the input dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_q: list[int],
    lengths_k: list[int],
    window: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`[Tq, H, D]` output and `[H, Tq]` log-sum-exp."""
    outputs, sums = [], []
    for clip_q, clip_k, clip_v in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True):
        repeats = q.shape[1] // k.shape[1]
        keys, values = clip_k.repeat_interleave(repeats, dim=1), clip_v.repeat_interleave(repeats, dim=1)
        scores = torch.einsum("qhd,khd->hqk", clip_q, keys) * scale
        rows = torch.arange(clip_q.shape[0])[:, None] + clip_k.shape[0] - clip_q.shape[0]
        columns = torch.arange(clip_k.shape[0])[None, :]
        visible = torch.ones(clip_q.shape[0], clip_k.shape[0], dtype=torch.bool)
        if window[0] >= 0:
            visible &= columns >= rows - window[0]
        if window[1] >= 0:
            visible &= columns <= rows + window[1]
        scores = scores.masked_fill(~visible, -torch.inf)
        probabilities = torch.nan_to_num(scores.softmax(-1))
        outputs.append(torch.einsum("hqk,khd->qhd", probabilities, values))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outputs), torch.cat(sums, dim=1)
