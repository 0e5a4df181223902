"""Reference prototype loss: all scores, in the dtype of the inputs; Sinkhorn-Knopp on `exp`, as in DINOv2's code."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn_knopp(scores: Tensor, iterations: int) -> Tensor:
    """`[T, K]` scores, divided by the temperature, to `[T, K]` targets whose rows sum to 1."""
    assignment = scores.exp().T
    prototypes, tokens = assignment.shape
    assignment = assignment / assignment.sum()
    for _ in range(iterations):
        assignment = assignment / assignment.sum(dim=1, keepdim=True) / prototypes
        assignment = assignment / assignment.sum(dim=0, keepdim=True) / tokens
    return (assignment * tokens).T


def prototype_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    lengths: list[int] | None = None,
    centering: str = "sinkhorn",
    sinkhorn_iterations: int = 3,
    center: Tensor | None = None,
) -> Tensor:
    """`[T, D]` features and `[K, D]` prototypes to a scalar: the mean over clips of the mean over a clip's tokens."""
    with torch.no_grad():
        scores = teacher @ teacher_prototypes.T
        if centering == "sinkhorn":
            target = sinkhorn_knopp(scores / teacher_temperature, sinkhorn_iterations)
        else:
            target = ((scores if center is None else scores - center) / teacher_temperature).softmax(1)
    prediction = (student @ student_prototypes.T / student_temperature).log_softmax(1)
    losses = -(target * prediction).sum(1)
    if lengths is None:
        return losses.mean()
    clips = losses.split(lengths)
    return torch.stack([clip.mean() if len(clip) else clip.sum() for clip in clips]).mean()
