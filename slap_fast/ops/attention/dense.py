"""Dense softmax attention and its gradient in plain PyTorch: one tile of the PyTorch backends."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of `[..., G, M, D]` queries over `[..., 1, N, D]` keys, which G query heads share.

    `hidden` is True where a query must not see a key. A query without visible keys gives 0 and an lse of -inf.
    """
    scores = _scores(q, k, hidden, scale)
    lse = scores.logsumexp(-1)
    return _probabilities(scores, lse).matmul(v), lse


def attend_backward(
    grad_out: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, hidden: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend` by `q`, `k` and `v`; the last two are not yet summed over the G query heads."""
    probabilities = _probabilities(_scores(q, k, hidden, scale), lse)
    grad_v = probabilities.transpose(-1, -2).matmul(grad_out)
    grad_scores = grad_out.matmul(v.transpose(-1, -2)).sub_(delta.unsqueeze(-1)).mul_(probabilities).mul_(scale)
    return grad_scores.matmul(k), grad_scores.transpose(-1, -2).matmul(q), grad_v


def _scores(q: Tensor, k: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    scores = q.matmul(k.transpose(-1, -2)).mul_(scale)
    return scores if hidden is None else scores.masked_fill_(hidden, -math.inf)


def _probabilities(scores: Tensor, lse: Tensor) -> Tensor:
    """Overwrites `scores`. A row without visible keys gives 0, not the NaN of -inf minus -inf."""
    return scores.sub_(lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1)).exp_()


def softmax_delta(grad_out: Tensor, grad_lse: Tensor, out: Tensor) -> Tensor:
    """`[H, Tq]`: what the backward subtracts from the gradient of each probability of a query."""
    return (grad_out.to(grad_lse.dtype) * out.to(grad_lse.dtype)).sum(-1).t() - grad_lse


def out_of_window(query: Tensor, key: Tensor, left: int, right: int) -> Tensor | None:
    """True where position `key` is outside the window of position `query`; both are aligned to the last key."""
    if left < 0 and right < 0:
        return None
    distance = key - query
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if right >= 0:
        hidden |= distance > right
    return hidden
