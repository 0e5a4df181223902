"""What the attention benchmark computes, the same for every peer, and how much of it there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.case import Outputs
from slap_fast.ops import PackedLayout, varlen_attention

FORWARD_PRODUCTS = 2  # scores, and the sum of values
BACKWARD_PRODUCTS = 5  # scores anew, and the gradients of probabilities, values, queries and keys


@dataclass(frozen=True)
class Workload:
    """Self-attention over packed clips.

    Attributes:
        lengths: tokens of each clip.
        window: keys visible to the left and right of a query; (-1, -1) is all of the clip.
        dtype: of queries, keys and values.
        backward: whether a step takes the gradients of all three.
        device: where the tensors lie.
        heads: of queries, keys and values alike.
        head_dim: the width of a head.
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
        """(query, key) pairs that see each other, of one head."""
        return sum(_visible_pairs(length, *self.window) for length in self.lengths)

    @property
    def flop(self) -> float:
        """Multiplications and additions of the products over visible pairs: what no way to compute it can avoid."""
        products = FORWARD_PRODUCTS + (BACKWARD_PRODUCTS if self.backward else 0)
        return 2.0 * products * self.head_dim * self.heads * self.pairs

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `[T, H, D]` each."""
        q, k, v = (self._normal(seed) for seed in range(3))
        return q, k, v

    def gradient(self) -> Tensor:
        """`[T, H, D]`: what arrives at the output in the backward pass."""
        return self._normal(3)

    def layout(self) -> PackedLayout:
        return PackedLayout.from_lengths(self.lengths, device=self.device)

    def reference(self) -> Outputs:
        """By the PyTorch backend in float64 on the host, a head at a time: an hour of all heads would fill memory."""
        layout = PackedLayout.from_lengths(self.lengths)
        tensors, gradient = [x.cpu() for x in self.tensors()], self.gradient().cpu()
        names = ("out", *(("dq", "dk", "dv") if self.backward else ()))
        outputs = {name: torch.empty(self.tokens, self.heads, self.head_dim) for name in names}
        for head in range(self.heads):
            q, k, v = (x[:, head : head + 1].double().requires_grad_(self.backward) for x in tensors)
            out = varlen_attention(
                q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, window=self.window, backend="torch"
            )
            results = [out.detach()]
            if self.backward:
                results += torch.autograd.grad(out, (q, k, v), gradient[:, head : head + 1].double())
            for name, result in zip(names, results, strict=True):
                outputs[name][:, head] = result[:, 0]
        return outputs

    def _normal(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.tokens, self.heads, self.head_dim, generator=generator)
        return x.to(self.device, self.dtype)


def _visible_pairs(length: int, left: int, right: int) -> int:
    sides = (length - 1 if side < 0 else min(side, length - 1) for side in (left, right))
    return length + sum(side * length - side * (side + 1) // 2 for side in sides) if length else 0
