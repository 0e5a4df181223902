"""Triton backend, GPU: Triton kernels and cuBLAS, no host synchronization, usable in CUDA graphs, any width."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.contrastive.call import BackwardInputs, ContrastiveCall, Sums
from slap_fast.ops.tensor_checks import matrix


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call; None if they can."""
    return triton_support.rejects_dtype("embeddings", dtype) or triton_support.rejects_device(device)


def forward(call: ContrastiveCall) -> Sums:
    """See `Backend.forward`."""
    from slap_fast.kernels import contrastive as kernels

    return kernels.sums(**_readable(call)._asdict())


def backward(call: ContrastiveCall, inputs: BackwardInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    from slap_fast.kernels import contrastive as kernels

    vectors = {name: x.contiguous() for name, x in inputs._asdict().items()}
    grad_audio, grad_text, grad_scale, grad_bias = kernels.sums_backward(**_readable(call)._asdict(), **vectors)
    scale = call.logit_scale
    bias = scale if call.logit_bias is None else call.logit_bias
    return grad_audio, grad_text, grad_scale.to(scale).view_as(scale), grad_bias.to(bias).view_as(bias)


def _readable(call: ContrastiveCall) -> ContrastiveCall:
    """The call in memory that the kernels can read."""
    return call._replace(
        audio=matrix(call.audio),
        text=matrix(call.text),
        audio_ids=None if call.audio_ids is None else call.audio_ids.contiguous(),
        text_ids=None if call.text_ids is None else call.text_ids.contiguous(),
    )
