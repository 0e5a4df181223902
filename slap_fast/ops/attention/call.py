"""What a backend of `varlen_attention` is: a module with these four functions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class VarlenAttentionBackend(Protocol):
    """A backend module. Importing it must be cheap: the library that it drives is imported by what is called.

    Tensors come validated, but for offsets on a GPU. Strides are any; what a backend needs contiguous it copies.
    `left` and `right` are inclusive, -1 is unlimited, and the last query of a clip stands on its last key.
    """

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all, None if it can."""

    def rejects(
        self,
        *,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        heads: int,
        kv_heads: int,
        left: int,
        right: int,
        cross: bool,
        is_long: bool,
        return_lse: bool,
        needs_grad: bool,
    ) -> str | None:
        """Why it cannot serve such a call, None if it can. Traced by the compiler: plain comparisons only.

        `cross` says that keys have offsets of their own, `is_long` that a query sequence may have over 8192 tokens,
        `needs_grad` that a backward may follow.
        """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        left: int,
        right: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """A new, contiguous `[Tq, H, D]` and the log-sum-exp `[H, Tq]`, float32 (float64 for float64).

        A query without keys gives 0 and -inf.
        """

    def backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        left: int,
        right: int,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New, contiguous gradients of `q`, `k` and `v`, in their dtypes. `grad_lse` is 0 where no lse was returned."""


def softmax_delta(grad_out: Tensor, grad_lse: Tensor, out: Tensor) -> Tensor:
    """`[H, Tq]`: what the backward subtracts from the gradient of each probability of a query."""
    return (grad_out.to(grad_lse.dtype) * out.to(grad_lse.dtype)).sum(-1).t() - grad_lse
