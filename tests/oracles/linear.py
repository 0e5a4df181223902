"""Linear layer, as a sum of products that are written out."""

from __future__ import annotations

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` of `[..., K]`, `[N, K]` and `[N]`."""
    products = (x[..., None, :] * weight).sum(-1)  # [..., N]
    return products if bias is None else products + bias
