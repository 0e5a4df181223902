"""Arguments of `linear_cross_entropy`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch


class LinearCrossEntropyCall(NamedTuple):
    """Arguments of the registered op and of every backend.

    Attributes:
        hidden: `[T, D]`, any strides; T may be 0.
        weight: `[V, D]`, any strides.
        target: `[T]` int64, any stride.
        ignore_index: target of tokens that do not count, whatever their features, NaN included.
        label_smoothing: in [0, 1].
        z_loss: at least 0.
        hidden_needs_grad: False: that gradient is a tensor of shape `[0]`.
        weight_needs_grad: the same for `weight`.
    """

    hidden: Tensor
    weight: Tensor
    target: Tensor
    ignore_index: int
    label_smoothing: float
    z_loss: float
    hidden_needs_grad: bool
    weight_needs_grad: bool

    @property
    def needs_grad(self) -> bool:
        return self.hidden_needs_grad or self.weight_needs_grad


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated, except targets on a GPU."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, width: int, vocabulary: int) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def loss_and_gradients(self, call: LinearCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor]:
        """The loss summed over tokens, and its gradients by `hidden` and `weight`, in float32 (float64 for float64).

        A target that is neither `ignore_index` nor in [0, V) makes the loss NaN, and with it the gradients of
        everything that the token touches; it is never used as an index.
        """


def validate(call: LinearCrossEntropyCall) -> LinearCrossEntropyCall:
    """The call; raises the ValueErrors of `linear_cross_entropy`, but for values of targets."""
    hidden, weight, target = call.hidden, call.weight, call.target
    shape, weight_shape = hidden.shape, weight.shape
    if len(shape) != 2 or len(weight_shape) != 2 or shape[1] != weight_shape[1] or weight_shape[0] == 0:
        raise ValueError(
            f"hidden, weight have shapes {tuple(shape)}, {tuple(weight_shape)}; pass [T, D] and [V, D], V > 0"
        )
    if hidden.dtype != weight.dtype or not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden, weight are {hidden.dtype}, {weight.dtype}; pass one floating-point dtype")
    if not isinstance(target, Tensor):
        raise ValueError(f"target is a {type(target).__name__}; pass a torch tensor")
    if target.shape != shape[:1] or target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype} of shape {tuple(target.shape)}; pass [{shape[0]}] int64")
    if not hidden.device == weight.device == target.device:
        raise ValueError(
            f"hidden, weight, target are on {hidden.device}, {weight.device}, {target.device}; use one device"
        )
    if not 0.0 <= call.label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {call.label_smoothing}; it must lie in [0, 1]")
    if not call.z_loss >= 0.0:
        raise ValueError(f"z_loss is {call.z_loss}; it must be at least 0")
    return call


def require_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is "mean" or "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; choose 'mean' or 'sum'")


def validate_targets(call: LinearCrossEntropyCall) -> None:
    """Raise ValueError for a target outside the vocabulary, on the CPU and outside of a compiler."""
    target, vocabulary = call.target, call.weight.shape[0]
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    inside = target.clamp(0, vocabulary - 1)
    if torch.equal(inside, target):  # fast: one pass, no mask
        return
    invalid = (inside != target) & (target != call.ignore_index)
    if invalid.any():
        token = int(invalid.nonzero()[0])
        raise ValueError(
            f"target[{token}] is {int(target[token])}; it must lie in [0, {vocabulary}) or be ignore_index "
            f"({call.ignore_index})"
        )


def select(call: LinearCrossEntropyCall, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select(
        "linear_cross_entropy",
        requested,
        device=call.hidden.device,
        dtype=call.hidden.dtype,
        width=call.hidden.shape[1],
        vocabulary=call.weight.shape[0],
    )


def check(call: LinearCrossEntropyCall, backend: str) -> tuple[LinearCrossEntropyCall, str]:
    """Arguments of the registered op, validated; raises ValueError.

    A target outside the vocabulary makes the loss NaN: only the public function reads targets.
    """
    return validate(call), select(call, backend)
