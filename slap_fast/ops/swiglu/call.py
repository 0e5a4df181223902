"""Input validation and backend selection of `swiglu`, and the backend protocol."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.tensor_checks import require


class Backend(Protocol):
    """A backend module of the registered op. Importing it must be cheap. Inputs are validated and have any strides."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def forward(self, gate_up: Tensor, out: Tensor) -> None:
        """Write `silu(gate) * up` of `gate_up` `[..., 2 * M]` to `out`, `[..., M]` and contiguous."""

    def backward(self, gate_up: Tensor, grad: Tensor, grad_gate_up: Tensor) -> None:
        """Write the gradient of `gate_up` to `grad_gate_up`, which is contiguous."""


def validate(gate_up: Tensor) -> Tensor:
    """`gate_up`; raises the ValueErrors of `swiglu`."""
    if not isinstance(gate_up, Tensor):
        raise ValueError(f"gate_up is a {type(gate_up).__name__}; pass a torch tensor")
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up has shape {tuple(gate_up.shape)}; pass [..., 2 * M]")
    if not gate_up.dtype.is_floating_point:
        raise ValueError(f"gate_up is {gate_up.dtype}; pass a floating-point dtype")
    return gate_up


def select(gate_up: Tensor, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("swiglu", requested, device=gate_up.device, dtype=gate_up.dtype)


def check(gate_up: Tensor, backend: str) -> tuple[Tensor, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    chosen = select(validate(gate_up), backend)
    if chosen == "torch":
        raise ValueError('backend "torch" is not part of the registered op; call slap_fast.ops.swiglu')
    return gate_up, chosen


def check_backward(gate_up: Tensor, grad: Tensor, backend: str) -> tuple[Tensor, Tensor, str]:
    """As `check`, for the backward op."""
    gate_up, chosen = check(gate_up, backend)
    require("grad", grad, (*gate_up.shape[:-1], gate_up.shape[-1] // 2), gate_up.dtype, gate_up.device)
    return gate_up, grad, chosen
