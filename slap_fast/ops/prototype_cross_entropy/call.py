"""What a backend of `prototype_cross_entropy` is: a module with these four functions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class PrototypeBackend(Protocol):
    """A backend module. Importing it must be cheap.

    Tensors come validated: features `[T, D]` and prototypes `[K, D]` of any strides, T may be 0. Temperatures are
    positive scalar tensors, on the device of the rest: they are never read back. What is not a feature or a prototype
    is float32, or float64 for float64.
    """

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all, None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, width: int, prototypes: int) -> str | None:
        """Why it cannot serve such a call, None if it can. Traced by the compiler: plain comparisons only."""

    def sinkhorn_sweep(
        self, teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None
    ) -> Tensor:
        """`[K]` log of each prototype's mass over these tokens, -inf where there is no token.

        With `logits = teacher @ prototypes.T / temperature`, a `[K]` potential and `r` the log-sum-exp of a token's
        `logits - potential` over prototypes, it is the log-sum-exp over tokens of `logits - r`. None: `r` is 0.
        """

    def loss_and_gradients(
        self,
        student: Tensor,
        teacher: Tensor,
        student_prototypes: Tensor,
        teacher_prototypes: Tensor,
        potential: Tensor | None,
        token_weight: Tensor,
        student_temperature: Tensor,
        teacher_temperature: Tensor,
        student_needs_grad: bool,
        prototypes_needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted sum over tokens, and its gradients by `student` and `student_prototypes`.

        In float32 (float64 for float64); a gradient that is not needed is a tensor of shape `[0]`. A token's target is
        `softmax(teacher @ teacher_prototypes.T / teacher_temperature - potential)`, without the potential if None.
        """
