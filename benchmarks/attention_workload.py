"""What the attention benchmark computes, the same for every peer, and how much of it there is."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.harness.case import Outputs
from benchmarks.harness.inputs import normal
from slap_fast.ops import PackedLayout, varlen_attention

LONGEST_PADDED = 4096
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
        """By a PyTorch backend in float64, a head at a time: an hour of all heads would fill memory."""
        outputs = _reference(replace(self, backward=True))
        return outputs if self.backward else {"out": outputs["out"]}

    def _normal(self, seed: int) -> Tensor:
        return normal(seed, self.tokens, self.heads, self.head_dim, device=self.device, dtype=self.dtype)


@functools.lru_cache(maxsize=1)  # the case with the backward follows the one without
def _reference(workload: Workload) -> Outputs:
    # Padded to the longest clip on a GPU, as long as that is short; clip by clip on the host.
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
