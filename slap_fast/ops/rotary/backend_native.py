"""Native backend, CPU: float32, bfloat16 and float16, on all of torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.rotary.call import Angles
from slap_fast.ops.tensor_checks import STORAGE, aligned, contiguous

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve `q` and `k` of `dtype` on `device`; None if it can."""
    if device.type != "cpu":
        return f"q and k are on {device}; native code reads CPU memory"
    return None if dtype in STORAGE else f"q and k are {dtype}; native code takes float32, bfloat16 and float16"


def rotate(q: Tensor, k: Tensor, angles: Angles, inverse: bool, out_q: Tensor, out_k: Tensor) -> None:
    """See `Backend.rotate`."""
    offsets = contiguous(angles.cu_seqlens.to(torch.int64))
    pairs = [(q, out_q), (k, out_k)]
    # Native code reads and writes the channels of a head as one row of memory: other strides are copied around it.
    rows = [(_rows(source), _rows(target)) for source, target in pairs]
    native.require().rotate(
        parts=[_part(source, target) for source, target in rows],
        dtype=STORAGE[q.dtype],
        head_dim=q.shape[2],
        tokens_per_frame=angles.tokens_per_frame,
        thetas=angles.thetas,
        inverse=inverse,
        cu_seqlens=offsets.data_ptr(),
        sequences=offsets.shape[0] - 1,
        total=q.shape[0],
        threads=torch.get_num_threads(),
    )
    for (_, target), (_, written) in zip(pairs, rows, strict=True):
        if written is not target:
            target.copy_(written)


def _rows(x: Tensor) -> Tensor:
    return aligned(x if x.stride(2) == 1 else x.contiguous())


def _part(source: Tensor, target: Tensor) -> tuple[int, ...]:
    strides = (*source.stride()[:2], *target.stride()[:2])
    return source.data_ptr(), target.data_ptr(), source.shape[1], *strides
