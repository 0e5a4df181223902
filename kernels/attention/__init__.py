"""Packed attention in Triton after FlashAttention-2 (arXiv 2307.08691): launchers of the forward and the backward.

Lower bounds of the time on an H200 (4.8 TB/s, 990 TFLOP/s dense bfloat16) for 100,000 bfloat16 tokens of 12 x 64
channels:

- The forward moves q, k, v and out, 0.61 GB: 128 us. With a window of 97 tokens its products are 30 GFLOP, 30 us: it is
  memory-bound. Clips of 750 tokens without a window are 230 GFLOP: 233 us at peak, 580 us at the 400 TFLOP/s measured
  for Triton with 64 channels on an H100 (FlashAttention-3, arXiv 2407.08608), where exponentials cost as much as
  products.
- The backward moves three times as much in its two kernels, 384 us. Without atomics it computes seven products instead
  of five: 105 us with the window, 820 us at peak for 750 tokens.
- The 16 clips of the benchmark (3,036 tokens) move 19 MB: 4 us, about one launch. Hence one launch forward, two
  backward, and no preparatory kernel: see packing.py for how a program finds its clip.

float32 is computed as three TF32 products. In simulation the error of the output is 1.3 times that of PyTorch's dense
attention in float32, even if tensor cores truncate each partial sum. Plain FMA would not use the tensor cores.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from slap_fast.kernels import launch
from slap_fast.kernels.attention.backward_kernels import grad_kv_kernel, grad_q_kernel
from slap_fast.kernels.attention.forward_kernels import forward_kernel
from slap_fast.kernels.attention.tiles import Tile, tile_for
from slap_fast.kernels.packing import tile_count

# Above any length, and small enough that position + window does not overflow int32.
_UNLIMITED = 1 << 30
# Replaces a scale of 0, which would turn the -inf of hidden keys into NaN.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class _Launch:
    """Settings shared by the launches of one call."""

    def __init__(self, q: Tensor, k: Tensor, left: int, right: int) -> None:
        self.left, self.right = min(left, _UNLIMITED), min(right, _UNLIMITED)
        self.head_dim, self.dtype = q.shape[2], q.dtype
        self.group = q.shape[1] // k.shape[1]
        self.capability = launch.capability(q.device)

    def tile(self, kernel: str) -> Tile:
        return tile_for(kernel, self.head_dim, self.dtype, left=self.left, right=self.right, capability=self.capability)

    def constants(self, tile: Tile) -> dict[str, object]:
        return {
            "GROUP": self.group,
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": max(16, triton.next_power_of_2(self.head_dim)),
            "BLOCK_Q": tile.queries,
            "BLOCK_K": tile.keys,
            "HAS_LEFT": self.left >= 0,
            "HAS_RIGHT": self.right >= 0,
            "BRANCH": tile.branch,
            "PRECISION": "tf32x3" if self.dtype == torch.float32 else "ieee",
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, left: int, right: int, scale: float
) -> tuple[Tensor, Tensor]:
    """`[Tq, H, D]` in the dtype of `q` and `[H, Tq]` float32; the last stride of each input is 1."""
    if scale < 0:  # the kernel takes the maximum of a row before it scales
        return forward(-q, k, v, cu_seqlens_q, cu_seqlens_k, left, right, -scale)
    total, heads, _ = q.shape
    clips = cu_seqlens_q.shape[0] - 1
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, total, dtype=torch.float32, device=q.device)
    shared = _Launch(q, k, left, right)
    tile = shared.tile("forward")
    tiles = tile_count(total, clips, tile.queries)
    if total == 0:
        return out, lse
    with launch.on_device_of(q):
        forward_kernel[(tiles, heads)](
            q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2], total,
            clips, total, k.shape[0], shared.left, shared.right, max(scale, _SMALLEST_SCALE), **shared.constants(tile),
        )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in their dtypes; `grad_lse` and `lse` are contiguous, all other last strides are 1."""
    if scale < 0:
        settings = cu_seqlens_q, cu_seqlens_k, left, right, -scale
        grad_q, grad_k, grad_v = backward(grad_out, grad_lse, -q, k, v, out, lse, *settings)
        return grad_q.neg_(), grad_k, grad_v
    total_q, heads, _ = q.shape
    total_k, kv_heads, _ = k.shape
    clips = cu_seqlens_q.shape[0] - 1
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    row_stats = torch.empty(heads, total_q, 4, dtype=torch.float32, device=q.device)
    shared = _Launch(q, k, left, right)
    arguments = (total_q, clips, total_q, total_k, shared.left, shared.right, max(scale, _SMALLEST_SCALE))
    with launch.on_device_of(q):
        if total_q:
            tile = shared.tile("grad_q")
            grad_q_kernel[(tile_count(total_q, clips, tile.queries), heads)](
                q, k, v, out, grad_out, grad_lse, lse, row_stats, grad_q, cu_seqlens_q, cu_seqlens_k,
                *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2], *grad_out.stride()[:2],
                *grad_q.stride()[:2], *arguments, **shared.constants(tile),
            )  # fmt: skip
        if total_k:
            tile = shared.tile("grad_kv")
            grad_kv_kernel[(tile_count(total_k, clips, tile.keys), kv_heads)](
                q, k, v, grad_out, row_stats, grad_k, grad_v, cu_seqlens_q, cu_seqlens_k,
                *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2], *grad_k.stride()[:2],
                *arguments, **shared.constants(tile),
            )  # fmt: skip
    return grad_q, grad_k, grad_v
