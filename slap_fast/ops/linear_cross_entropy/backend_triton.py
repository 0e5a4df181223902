"""Vocabulary loss by Triton kernels and cuBLAS: no host synchronisation, fit for CUDA graphs, any width."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.triton_support import matrix


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call, None if they can."""
    return triton_support.rejects_dtype("hidden, weight", dtype) or triton_support.rejects_device(device)


def loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    hidden_needs_grad: bool,
    weight_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss and its gradients, empty where not needed."""
    from slap_fast.kernels import linear_cross_entropy as kernels

    return kernels.loss_and_gradients(
        matrix(hidden),
        matrix(weight),
        target.contiguous(),
        ignore_index,
        label_smoothing,
        z_loss,
        hidden_needs_grad,
        weight_needs_grad,
    )
