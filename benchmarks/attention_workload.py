"""Workloads of the attention benchmark: inputs, float64 reference and operation counts, the same for every peer."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.harness.case import Outputs
from benchmarks.harness.inputs import normal
from slap_fast.ops import PackedLayout, varlen_attention

LONGEST_PADDED = 4096
FORWARD_PRODUCTS = 2  # scores, weighted sum of values
BACKWARD_PRODUCTS = 5  # scores again, and the gradients of probabilities, values, queries and keys


@dataclass(frozen=True)
class Workload:
    """Self-attention over packed clips.

    Attributes:
        lengths: tokens of each clip.
        window: keys visible to the left and right of a query; (-1, -1) is the whole clip.
        dtype: of queries, keys and values.
        backward: whether a step computes the gradients of all three.
        device: "cpu" or "cuda".
        heads: of queries, keys and values.
        head_dim: channels of a head.
    """

    lengths: tuple[int, ...]
    window: tuple[int, int]
    dtype: torch.dtype
    backward: bool
    device: str
    heads: int
    head_dim: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def is_local(self) -> bool:
        return self.window != (-1, -1)

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one head."""
        return sum(_visible_pairs(length, *self.window) for length in self.lengths)

    @property
    def flop(self) -> float:
        """Multiplications and additions of the products over visible pairs, which no implementation can avoid."""
        products = FORWARD_PRODUCTS + (BACKWARD_PRODUCTS if self.backward else 0)
        return 2.0 * products * self.head_dim * self.heads * self.pairs

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `[T, H, D]` each."""
        q, k, v = (self._normal(seed) for seed in range(3))
        return q, k, v

    def gradient(self) -> Tensor:
        """`[T, H, D]`: gradient of the output."""
        return self._normal(3)

    def layout(self) -> PackedLayout:
        return PackedLayout.from_lengths(self.lengths, device=self.device)

    def reference(self) -> Outputs:
        """Results of a PyTorch backend in float64, one head at a time: an hour of all heads would fill memory."""
        outputs = _reference(replace(self, backward=True))
        return outputs if self.backward else {"out": outputs["out"]}

    def _normal(self, seed: int) -> Tensor:
        return normal(seed, self.tokens, self.heads, self.head_dim, device=self.device, dtype=self.dtype)


@functools.lru_cache(maxsize=1)  # the case with the backward follows the one without
def _reference(workload: Workload) -> Outputs:
    # On the GPU padded to the longest clip, unless that is too long; on the CPU clip by clip.
    on_host = workload.device == "cpu" or workload.longest > LONGEST_PADDED
    device, backend = ("cpu", "torch") if on_host else (workload.device, "torch_padded")
    layout = PackedLayout.from_lengths(workload.lengths, device=device)
    tensors, gradient = [x.to(device) for x in workload.tensors()], workload.gradient().to(device)
    names = ("out", "dq", "dk", "dv")
    shape = (workload.tokens, workload.heads, workload.head_dim)
    outputs = {name: torch.empty(shape, device=device) for name in names}
    for head in range(workload.heads):
        q, k, v = (x[:, head : head + 1].double().requires_grad_() for x in tensors)
        out = varlen_attention(
            q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, window=workload.window, backend=backend
        )
        results = [out.detach(), *torch.autograd.grad(out, (q, k, v), gradient[:, head : head + 1].double())]
        for name, result in zip(names, results, strict=True):
            outputs[name][:, head] = result[:, 0]
    return {name: value.to(workload.device) for name, value in outputs.items()}


def _visible_pairs(length: int, left: int, right: int) -> int:
    sides = (length - 1 if side < 0 else min(side, length - 1) for side in (left, right))
    return length + sum(side * length - side * (side + 1) // 2 for side in sides) if length else 0
