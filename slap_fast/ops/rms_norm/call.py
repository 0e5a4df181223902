"""Arguments of `rms_norm` and `add_rms_norm`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.tensor_checks import require, require_like


class ForwardCall(NamedTuple):
    """Arguments of `Backend.forward`: `x` and `residual` `[..., W]`, `weight` `[W]`, any strides."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    eps: float


class BackwardCall(NamedTuple):
    """Arguments of the registered backward op and of `Backend.backward`.

    Attributes:
        summed: `[..., W]`, what was normalized.
        weight: `[W]`.
        rstd: `[...]` float32, contiguous: the reciprocal root mean square of each row.
        grad_normed: `[..., W]` gradient of the normalized sum, any strides.
        grad_summed: the same of the sum; None: it has none.
    """

    summed: Tensor
    weight: Tensor
    rstd: Tensor
    grad_normed: Tensor
    grad_summed: Tensor | None


class Backend(Protocol):
    """A backend module of the registered ops. Importing it must be cheap. Inputs are validated."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def forward(self, call: ForwardCall, summed: Tensor | None, normed: Tensor, rstd: Tensor) -> None:
        """Write `x + residual` to `summed`, its norm to `normed`, and the factor of each row to `rstd`.

        Outputs are contiguous. Without a residual `summed` is None, and `x` is normalized.
        """

    def backward(self, call: BackwardCall, grad: Tensor, grad_weight: Tensor) -> None:
        """Write the gradient of the sum to `grad` and that of the weight to `grad_weight`, both contiguous."""


def validate(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> None:
    """Raise the ValueErrors of `rms_norm` and, with a residual, of `add_rms_norm`."""
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device):
        raise ValueError(
            f"x is {_described(x)} and residual is {_described(residual)}; pass one shape, dtype and device"
        )
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"x and weight have shapes {tuple(x.shape)}, {tuple(weight.shape)}; pass [..., W] and [W]")
    if not x.dtype.is_floating_point or weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"x is {_described(x)} and weight is {_described(weight)}; pass one floating-point dtype and one device"
        )
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it cannot be negative")


def select(x: Tensor, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("rms_norm", requested, device=x.device, dtype=x.dtype, width=x.shape[-1])


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"


def check(x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, float, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    return x, weight, eps, _checked(x, None, weight, eps, backend)


def check_add(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, float, str]:
    """As `check`, for the op with a residual."""
    return x, residual, weight, eps, _checked(x, residual, weight, eps, backend)


def check_backward(call: BackwardCall, backend: str) -> tuple[BackwardCall, str]:
    """As `check`, for the backward op."""
    summed = call.summed
    chosen = _checked(summed, None, call.weight, 0.0, backend)
    require_like("grad_normed", call.grad_normed, summed)
    if call.grad_summed is not None:
        require_like("grad_summed", call.grad_summed, summed)
    require("rstd", call.rstd, summed.shape[:-1], torch.float32, summed.device)
    return call._replace(rstd=call.rstd.contiguous()), chosen


def _checked(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, backend: str) -> str:
    """The backend that serves a call of a registered op."""
    validate(x, residual, weight, eps)
    chosen = select(x, backend)
    if chosen == "torch":
        raise ValueError('backend "torch" is not part of the registered op; call slap_fast.ops.rms_norm')
    return chosen
