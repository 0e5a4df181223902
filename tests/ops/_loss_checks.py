"""Shared by the tests of the losses: inputs and the error bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def unit_rows(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1).to(dtype).requires_grad_()


def loss_and_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    loss = function(*leaves)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        loss.detach(),
        *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)),
    ]


def assert_as_accurate_as_plain(
    function: Callable[..., Tensor], oracle: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> None:
    """The error of loss and gradients against float64 is at most twice that of the oracle in the dtype of `tensors`.

    Rounding errors come on top: of a result in its dtype, and of sums in float32.
    """
    actual = loss_and_gradients(function, tensors)
    plain = loss_and_gradients(oracle, tensors)
    exact = loss_and_gradients(oracle, [tensor.double() for tensor in tensors])
    for name, got, peer, wanted in zip(["loss", *map(str, range(len(tensors)))], actual, plain, exact, strict=True):
        error, peer_error = ((x.double() - wanted).norm() for x in (got, peer))
        size = wanted.norm()
        rounding = (torch.finfo(got.dtype).eps + torch.finfo(torch.float32).eps) * size
        assert error <= 2 * peer_error + rounding, f"{name}: error {error:.3g}, plain {peer_error:.3g}, size {size:.3g}"
