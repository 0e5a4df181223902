"""Input validation and backend selection of `linear`, and the backend protocol."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch


class Backend(Protocol):
    """A backend module of the registered op. Importing it must be cheap. Inputs are validated and have any strides."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot serve an `x` of `dtype` on `device`; None if it can. Traced: plain comparisons only."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight.T + bias` of `[T, K]`, `[N, K]` and `[N]`: `[T, N]`, contiguous."""


def validate(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise the ValueErrors of `linear`."""
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        raise ValueError(f"x is a {type(x).__name__} and weight a {type(weight).__name__}; pass torch tensors")
    if x.dim() == 0 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"x and weight have shapes {tuple(x.shape)} and {tuple(weight.shape)}; pass [..., K], [N, K]")
    if not x.dtype.is_floating_point:
        raise ValueError(f"x is {x.dtype}; pass a floating-point dtype")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise ValueError(
                f"x is {x.dtype} on {x.device} and {name} is {tensor.dtype} on {tensor.device}; pass one dtype and one "
                "device"
            )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; pass [{weight.shape[0]}], one for each row of weight")


def select(x: Tensor, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("linear", requested, device=x.device, dtype=x.dtype)


def check(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    validate(x, weight, bias)
    chosen = select(x, backend)
    if chosen == "torch":
        raise ValueError('backend "torch" is not part of the registered op; call slap_fast.ops.linear')
    return x, weight, bias, chosen
