"""What a backend of `linear_cross_entropy` is: a module with these three functions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LinearCrossEntropyBackend(Protocol):
    """A backend module. Importing it must be cheap. Tensors come validated, but for targets on a GPU."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all, None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, width: int, vocabulary: int) -> str | None:
        """Why it cannot serve such a call, None if it can. Traced by the compiler: plain comparisons only."""

    def loss_and_gradients(
        self,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        ignore_index: int,
        label_smoothing: float,
        z_loss: float,
        hidden_needs_grad: bool,
        weight_needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss summed over tokens, and its gradients by `hidden` and `weight`, in float32 (float64 for float64).

        Args:
            hidden: `[T, D]`, any strides; T may be 0.
            weight: `[V, D]`, any strides.
            target: `[T]` int64, any stride. One that is neither `ignore_index` nor in [0, V) makes the loss NaN, and
                with it the gradients of all that the token touches; it is never read out of bounds.
            ignore_index: target of tokens that count for nothing, whatever their features, NaN too.
            label_smoothing: in [0, 1].
            z_loss: at least 0.
            hidden_needs_grad: False: that gradient is a tensor of shape `[0]`.
            weight_needs_grad: the same for the other.
        """
