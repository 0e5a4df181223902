"""Triton backend, GPU: Triton kernels and cuBLAS, no host synchronization, usable in CUDA graphs, any width."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.linear_cross_entropy.call import LinearCrossEntropyCall
from slap_fast.ops.tensor_checks import matrix


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call; None if they can."""
    return triton_support.rejects_dtype("hidden, weight", dtype) or triton_support.rejects_device(device)


def loss_and_gradients(call: LinearCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.loss_and_gradients`."""
    from slap_fast.kernels import linear_cross_entropy as kernels

    call = call._replace(hidden=matrix(call.hidden), weight=matrix(call.weight), target=call.target.contiguous())
    return kernels.loss_and_gradients(**call._asdict())
