"""Reference vocabulary loss: all logits, in the dtype of the inputs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """`[T, D]` and `[V, D]` to a scalar."""
    counted = target != ignore_index
    logits = hidden[counted] @ weight.T
    losses = F.cross_entropy(logits, target[counted], label_smoothing=label_smoothing, reduction="none")
    losses = losses + z_loss * logits.logsumexp(1) ** 2
    return losses.mean() if reduction == "mean" else losses.sum()
