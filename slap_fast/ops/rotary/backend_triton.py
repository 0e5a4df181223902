"""Triton backend, GPU: `q` and `k` in one launch, in place or not; usable in CUDA graphs after a first call."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.rotary.call import Angles
from slap_fast.ops.tensor_checks import unit_last_stride

unavailable = triton_support.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernel cannot serve `q` and `k` of `dtype` on `device`; None if it can."""
    return triton_support.rejects_dtype("q and k", dtype) or triton_support.rejects_device(device)


def rotate(q: Tensor, k: Tensor, angles: Angles, inverse: bool, out_q: Tensor, out_k: Tensor) -> None:
    """See `Backend.rotate`."""
    from slap_fast.kernels import rotary as kernels

    # The kernel reads and writes the channels of a head as one row of memory: other strides are copied around it.
    written = [unit_last_stride(target) for target in (out_q, out_k)]
    sources = unit_last_stride(q), unit_last_stride(k)
    kernels.rotate(*sources, angles.cu_seqlens.contiguous(), angles.tokens_per_frame, angles.thetas, inverse, *written)
    for target, rows in zip((out_q, out_k), written, strict=True):
        if rows is not target:
            target.copy_(rows)
