"""What `linear_cross_entropy` checks at its door."""

from __future__ import annotations

import torch
from torch import Tensor


def validate(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    *,
    targets: bool = True,
) -> None:
    """Raise the ValueError that `linear_cross_entropy` documents, if anything does not fit; `targets`: values too."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"hidden, weight have shapes {tuple(hidden.shape)}, {tuple(weight.shape)}; pass [T, D] and [V, D], V > 0"
        )
    if hidden.dtype != weight.dtype or not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden, weight are {hidden.dtype}, {weight.dtype}; pass one floating-point dtype")
    if not isinstance(target, Tensor):
        raise ValueError(f"target is a {type(target).__name__}; pass a torch tensor")
    if target.shape != hidden.shape[:1] or target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype} of shape {tuple(target.shape)}; pass [{hidden.shape[0]}] int64")
    if not hidden.device == weight.device == target.device:
        raise ValueError(
            f"hidden, weight, target are on {hidden.device}, {weight.device}, {target.device}; use one device"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1]")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss is {z_loss}; it must be at least 0")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; choose 'mean' or 'sum'")
    if not targets or target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    invalid = ((target < 0) | (target >= weight.shape[0])) & (target != ignore_index)
    if invalid.any():
        token = int(invalid.nonzero()[0])
        raise ValueError(
            f"target[{token}] is {int(target[token])}; it must lie in [0, {weight.shape[0]}) or be ignore_index "
            f"({ignore_index})"
        )
