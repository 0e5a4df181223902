"""Dense softmax attention and its gradient in plain PyTorch: what the PyTorch backends run on each of their tiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention of `[..., G, M, D]` queries (G query heads share a key head) over `[..., 1, N, D]` keys.

    `hidden` is True where a key is out of a query's sight. A query that sees no key gives 0 and an lse of -inf.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).mul_(scale)
    if hidden is not None:
        scores.masked_fill_(hidden, -math.inf)
    lse = scores.logsumexp(-1)
    finite = lse.masked_fill(lse == -math.inf, 0.0)
    return torch.matmul(scores.sub_(finite.unsqueeze(-1)).exp_(), v), lse


def attend_backward(
    grad_out: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, hidden: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend`; those of keys and values are still apart for the G query heads that share them."""
    probabilities = torch.matmul(q, k.transpose(-1, -2)).mul_(scale)
    if hidden is not None:
        probabilities.masked_fill_(hidden, -math.inf)
    finite = lse.masked_fill(lse == -math.inf, 0.0)
    probabilities = probabilities.sub_(finite.unsqueeze(-1)).exp_()
    grad_v = torch.matmul(probabilities.transpose(-1, -2), grad_out)
    grad_scores = torch.matmul(grad_out, v.transpose(-1, -2)).sub_(delta.unsqueeze(-1)).mul_(probabilities).mul_(scale)
    return torch.matmul(grad_scores, k), torch.matmul(grad_scores.transpose(-1, -2), q), grad_v


def out_of_window(query: Tensor, key: Tensor, left: int, right: int) -> Tensor | None:
    """True where `key` lies outside the window of `query`; both are positions aligned to the clip's last key."""
    if left < 0 and right < 0:
        return None
    distance = key - query
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if right >= 0:
        hidden |= distance > right
    return hidden
