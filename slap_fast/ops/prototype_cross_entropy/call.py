"""Arguments of `prototype_cross_entropy`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.packed import checked_offsets
from slap_fast.ops.tensor_checks import accumulator, require


class PrototypeCall(NamedTuple):
    """Arguments of the registered loss and of every backend.

    Features and prototypes may have any strides. All other tensors are float32 (float64 for float64), but for `scores`.
    Temperatures are tensors, so that a schedule neither recompiles a compiled graph nor waits for the GPU.

    Attributes:
        student, teacher: `[T, D]` features; T may be 0.
        student_prototypes, teacher_prototypes: `[K, D]`.
        potential: `[K]`, subtracted from the teacher's logits; None: zeros.
        token_weight: `[T]` weights of the sum over tokens.
        student_temperature, teacher_temperature: positive scalars.
        student_needs_grad: False: that gradient is a tensor of shape `[0]`.
        prototypes_needs_grad: the same for `student_prototypes`.
        scores: `teacher @ teacher_prototypes.T` of `sinkhorn_first_sweep`, or None. Read by the Triton backend only.
    """

    student: Tensor
    teacher: Tensor
    student_prototypes: Tensor
    teacher_prototypes: Tensor
    potential: Tensor | None
    token_weight: Tensor
    student_temperature: Tensor
    teacher_temperature: Tensor
    student_needs_grad: bool
    prototypes_needs_grad: bool
    scores: Tensor | None

    @property
    def needs_grad(self) -> bool:
        return self.student_needs_grad or self.prototypes_needs_grad


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, width: int, prototypes: int) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def sinkhorn_sweep(
        self, teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None
    ) -> Tensor:
        """The next potential over these tokens, `[K]`; -inf without tokens.

            logits = teacher @ prototypes.T / temperature                       # [T, K]
            next = logsumexp_t(logits - logsumexp_k(logits - potential))        # [K]

        Without a potential: `logsumexp_t(logits)`.
        """

    def loss_and_gradients(self, call: PrototypeCall) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted sum over tokens, and its gradients by `student` and `student_prototypes`.

        All in float32 (float64 for float64). A token's target is
        `softmax(teacher @ teacher_prototypes.T / teacher_temperature - potential)`.
        """


def temperature_tensor(features: Tensor, temperature: float) -> Tensor:
    """Scalar tensor in the accumulator's dtype.

    A number would be a constant of a compiled graph, which a temperature schedule would compile anew at every step.
    The compiler specializes on a number that fills a tensor, but not on one that multiplies a tensor.
    """
    return features.new_ones((), dtype=accumulator(features.dtype)) * temperature


def validate_features(student: Tensor, teacher: Tensor, student_prototypes: Tensor, teacher_prototypes: Tensor) -> None:
    """Raise the ValueErrors of `prototype_cross_entropy` for features and prototypes."""
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student, teacher have shapes {tuple(student.shape)}, {tuple(teacher.shape)}; pass two of [T, D]"
        )
    if (
        student_prototypes.dim() != 2
        or student_prototypes.shape != teacher_prototypes.shape
        or student_prototypes.shape[1] != student.shape[1]
        or student_prototypes.shape[0] == 0
    ):
        raise ValueError(
            f"student_prototypes, teacher_prototypes have shapes {tuple(student_prototypes.shape)}, "
            f"{tuple(teacher_prototypes.shape)}; pass two of [K, {student.shape[1]}], K > 0"
        )
    tensors = (student, teacher, student_prototypes, teacher_prototypes)
    if len({tensor.dtype for tensor in tensors}) > 1 or not student.dtype.is_floating_point:
        raise ValueError(f"features and prototypes are {[t.dtype for t in tensors]}; pass one floating-point dtype")
    if len({tensor.device for tensor in tensors}) > 1:
        raise ValueError(f"features and prototypes are on {[str(t.device) for t in tensors]}; use one device")


def validate_options(
    features: Tensor,
    prototypes: Tensor,
    *,
    cu_seqlens: Tensor | None,
    student_temperature: float,
    teacher_temperature: float,
    centering: str,
    sinkhorn_iterations: int,
    center: Tensor | None,
    potential: Tensor | None,
) -> None:
    """Raise the ValueErrors of `prototype_cross_entropy` for its options."""
    if cu_seqlens is not None:
        # The result is dropped: its dtype is that of the argument, which makes no copy.
        dtype = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else torch.int64
        checked_offsets("cu_seqlens", cu_seqlens, features.shape[0], features.device, dtype)
    require_positive("student_temperature", student_temperature)
    require_positive("teacher_temperature", teacher_temperature)
    if centering not in ("sinkhorn", "center", "softmax"):
        raise ValueError(f"centering is {centering!r}; choose 'sinkhorn', 'center' or 'softmax'")
    if centering == "sinkhorn":
        require_iterations("sinkhorn_iterations", sinkhorn_iterations)
    if (center is not None) != (centering == "center"):
        raise ValueError(
            f"centering is {centering!r} with center {'absent' if center is None else 'given'}; pass center with "
            "centering='center', and only then"
        )
    if potential is not None and centering != "sinkhorn":
        raise ValueError(f"centering is {centering!r} with potential given; a potential needs centering='sinkhorn'")
    for name, value in (("center", center), ("potential", potential)):
        if value is not None and (value.shape != prototypes.shape[:1] or value.device != prototypes.device):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} on {value.device}; pass [{prototypes.shape[0]}] on "
                f"{prototypes.device}"
            )


def validate_teacher(teacher: Tensor, prototypes: Tensor) -> None:
    """Raise the ValueErrors of `sinkhorn_potential` for features and prototypes."""
    if (
        teacher.dim() != 2
        or prototypes.dim() != 2
        or not prototypes.shape[0]
        or prototypes.shape[1] != teacher.shape[1]
    ):
        raise ValueError(
            f"teacher, teacher_prototypes have shapes {tuple(teacher.shape)}, {tuple(prototypes.shape)}; pass [T, D] "
            "and [K, D], K > 0"
        )
    if teacher.dtype != prototypes.dtype or not teacher.dtype.is_floating_point:
        raise ValueError(
            f"teacher, teacher_prototypes are {teacher.dtype}, {prototypes.dtype}; pass one floating-point dtype"
        )
    if teacher.device != prototypes.device:
        raise ValueError(f"teacher is on {teacher.device}, teacher_prototypes on {prototypes.device}; use one device")


def validate(call: PrototypeCall) -> PrototypeCall:
    """The call; raises ValueError for what a backend would misread."""
    student, prototypes = call.student, call.student_prototypes
    validate_features(student, call.teacher, prototypes, call.teacher_prototypes)
    dtype, device = accumulator(student.dtype), student.device
    if call.potential is not None:
        require("potential", call.potential, prototypes.shape[:1], dtype, device)
    require("token_weight", call.token_weight, student.shape[:1], dtype, device)
    for temperature in (call.student_temperature, call.teacher_temperature):
        require("the temperature", temperature, (), dtype, device)
    if call.scores is not None:
        _validate_scores(call.scores, student.shape[0], prototypes.shape[0], device)
    return call


def _validate_scores(scores: Tensor, tokens: int, prototypes: int, device: torch.device) -> None:
    """Raise ValueError unless stored scores have room for so many tokens and prototypes."""
    if scores.dim() != 2 or scores.shape[0] < tokens or scores.shape[1] < prototypes or scores.device != device:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} on {scores.device}; pass those of sinkhorn_first_sweep, for "
            f"{tokens} tokens and {prototypes} prototypes on {device}"
        )


def require_positive(name: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"{name} is {temperature}; it must be positive")


def require_iterations(name: str, iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"{name} is {iterations}; it must be at least 1")


def select(features: Tensor, prototypes: Tensor, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select(
        "prototype_cross_entropy",
        requested,
        device=features.device,
        dtype=features.dtype,
        width=features.shape[1],
        prototypes=prototypes.shape[0],
    )


def check(call: PrototypeCall, backend: str) -> tuple[PrototypeCall, str]:
    """Arguments of the registered loss, validated; raises ValueError."""
    call = validate(call)
    chosen = select(call.student, call.student_prototypes, backend)
    if call.scores is not None and chosen != "triton":
        raise ValueError(f"scores are given, which backend {chosen!r} does not read; pass None")
    return call, chosen


def check_sweep(
    teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, str]:
    """As `check`, for a sweep of Sinkhorn-Knopp."""
    validate_teacher(teacher, prototypes)
    dtype = accumulator(teacher.dtype)
    require("the temperature", temperature, (), dtype, teacher.device)
    if potential is not None:
        require("potential", potential, prototypes.shape[:1], dtype, teacher.device)
    return teacher, prototypes, temperature, potential, select(teacher, prototypes, backend)


def check_first_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `check`, for the sweep that stores the scores."""
    check_sweep(teacher, prototypes, temperature, None, "triton")
    return teacher, prototypes, temperature


def check_later_sweep(
    scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor
) -> tuple[Tensor, int, Tensor, Tensor]:
    """As `check`, for the sweeps that read stored scores."""
    _validate_scores(scores, tokens, potential.shape[0], potential.device)
    require("potential", potential, potential.shape[:1], torch.float32, scores.device)
    return scores, tokens, temperature, potential
