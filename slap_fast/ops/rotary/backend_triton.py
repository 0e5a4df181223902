"""Rotary embedding by a Triton kernel: q and k in one launch, in place or not; CUDA graphs after a first call."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.tensor_checks import unit_last_stride


def unavailable() -> str | None:
    """Why the kernel cannot run on this machine, None if it can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernel cannot serve q and k of `dtype` on `device`, None if it can."""
    return triton_support.rejects_dtype("q and k", dtype) or triton_support.rejects_device(device)


def rotate(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    tokens_per_frame: int,
    thetas: list[float],
    inverse: bool,
    out_q: Tensor,
    out_k: Tensor,
) -> None:
    """Write the rotated `q` and `k` to `out_q` and `out_k`, which may be the same tensors."""
    from slap_fast.kernels import rotary as kernels

    # A head is read and written as one row of memory. What lies otherwise is copied before and after.
    written = [unit_last_stride(target) for target in (out_q, out_k)]
    sources = unit_last_stride(q), unit_last_stride(k)
    kernels.rotate(*sources, cu_seqlens.contiguous(), tokens_per_frame, thetas, inverse, *written)
    for target, rows in zip((out_q, out_k), written, strict=True):
        if rows is not target:
            target.copy_(rows)
