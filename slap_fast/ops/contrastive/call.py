"""Arguments of `contrastive_loss`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.tensor_checks import accumulator, require


class ContrastiveCall(NamedTuple):
    """Arguments of the registered forward and of every backend: R audio rows against C text columns.

    Rows are the clips of one rank, columns those of all ranks or of another rank, so R may differ from C and either may
    be 0. The logits are `logit_scale * audio @ text.T + logit_bias`.

    Attributes:
        audio: `[R, D]`, any strides.
        text: `[C, D]`, any strides.
        logit_scale: one element.
        logit_bias: one element, or None.
        audio_ids, text_ids: `[R]` and `[C]` int64, or both None.
        offset: without ids, the positive of row `i` is column `offset + i`, if there is one: `offset` may be negative.
            With ids, the positives of a row are all columns of its id, if any.
        kind: "infonce" or "sigmoid".
        chunk_size: rows whose logits are held at once; 0: the backend decides.
    """

    audio: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None
    audio_ids: Tensor | None
    text_ids: Tensor | None
    offset: int
    kind: str
    chunk_size: int


class BackwardInputs(NamedTuple):
    """Arguments of the backward beside the `ContrastiveCall`.

    Attributes:
        row_loss, column_loss, row_stats, column_best: results of `Backend.forward`, of this call or combined with those
            of other columns and rows.
        grad_row, grad_column, grad_positive: gradients by the first three results of `Backend.forward`.
    """

    row_loss: Tensor
    column_loss: Tensor
    row_stats: Tensor
    column_best: Tensor
    grad_row: Tensor
    grad_column: Tensor
    grad_positive: Tensor


Sums = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated.

    The mean of an empty set is 0; its maximum and log-sum-exp are -inf.
    """

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, kind: str) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def forward(self, call: ContrastiveCall) -> Sums:
        """Five new tensors, float32 (float64 for float64).

        Returns:
            row_loss: `[R]`. infonce: log-sum-exp of each row's logits minus their maximum; sigmoid: the row's summed
                pair losses.
            column_loss: `[C]`. infonce: log-sum-exp of each column's logits minus their maximum; sigmoid: zeros.
            row_positive: `[R]`. infonce: mean of `logit_scale * similarity` over each row's positives; sigmoid: zeros.
            row_stats: `[4, R]`: mean similarity of the row's positives, mean similarity of its negatives, 1 if its best
                positive exceeds every negative else 0, maximum logit.
            column_best: `[2, C]`: maximum logit of each column's positives, and of its negatives.
        """

    def backward(self, call: ContrastiveCall, inputs: BackwardInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """New, contiguous gradients of `audio`, `text`, `logit_scale` and `logit_bias`, in their dtypes and shapes.

        Without a bias, the last one is zeros like `logit_scale`.
        """


def validate_batch(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    *,
    kind: str,
    ids: Tensor | None,
    chunk_size: int | None,
    exchange: str,
) -> None:
    """Raise the ValueErrors of `contrastive_loss`, whose arguments are the clips of this rank alone."""
    _require_kind(kind)
    if exchange not in ("gather", "ring"):
        raise ValueError(f"exchange is {exchange!r}; choose 'gather' or 'ring'")
    if audio.dim() != 2 or audio.shape != text.shape:
        raise ValueError(f"audio, text have shapes {tuple(audio.shape)}, {tuple(text.shape)}; pass two of [B, D]")
    if audio.dtype != text.dtype or not audio.dtype.is_floating_point:
        raise ValueError(f"audio, text are {audio.dtype}, {text.dtype}; pass one floating-point dtype")
    _require_scalars(logit_scale, logit_bias, audio)
    if text.device != audio.device:
        raise ValueError(f"text is on {text.device}, audio on {audio.device}; move one to the other")
    if ids is not None and not isinstance(ids, Tensor):
        raise ValueError(f"ids is a {type(ids).__name__}; pass a torch tensor")
    if ids is not None and (ids.shape != audio.shape[:1] or ids.dtype != torch.int64 or ids.device != audio.device):
        raise ValueError(
            f"ids is {ids.dtype} of shape {tuple(ids.shape)} on {ids.device}; pass [{audio.shape[0]}] int64 on "
            f"{audio.device}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or None")


def validate(call: ContrastiveCall) -> ContrastiveCall:
    """The call; raises ValueError for what a backend would misread."""
    audio, text = call.audio, call.text
    _require_kind(call.kind)
    if audio.dim() != 2 or not audio.dtype.is_floating_point:
        raise ValueError(f"audio is {audio.dtype} of shape {tuple(audio.shape)}; pass floating-point [R, D]")
    require("text", text, (text.shape[0] if text.dim() else 0, audio.shape[1]), audio.dtype, audio.device)
    _require_scalars(call.logit_scale, call.logit_bias, audio)
    if (call.audio_ids is None) != (call.text_ids is None):
        raise ValueError("only one of audio_ids and text_ids is given; pass both or neither")
    for name, ids, rows in (("audio_ids", call.audio_ids, audio), ("text_ids", call.text_ids, text)):
        if ids is not None:
            require(name, ids, rows.shape[:1], torch.int64, audio.device)
    if call.chunk_size < 0:
        raise ValueError(f"chunk_size is {call.chunk_size}; it must be at least 1, or 0 to let the backend decide")
    return call


def select(call: ContrastiveCall, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    audio = call.audio
    return dispatch.select("contrastive_loss", requested, device=audio.device, dtype=audio.dtype, kind=call.kind)


def check(call: ContrastiveCall, backend: str) -> tuple[ContrastiveCall, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    return validate(call), select(call, backend)


def check_backward(
    call: ContrastiveCall, inputs: BackwardInputs, backend: str
) -> tuple[ContrastiveCall, BackwardInputs, str]:
    """As `check`, for the backward op."""
    call, chosen = check(call, backend)
    row, column = call.audio.shape[:1], call.text.shape[:1]
    shapes: list[tuple[int, ...]] = [row, column, (4, *row), (2, *column), row, column, row]
    for name, x, shape in zip(inputs._fields, inputs, shapes, strict=True):
        require(name, x, shape, accumulator(call.audio.dtype), call.audio.device)
    return call, inputs, chosen


def _require_kind(kind: str) -> None:
    if kind not in ("infonce", "sigmoid"):
        raise ValueError(f"kind is {kind!r}; choose 'infonce' or 'sigmoid'")


def _require_scalars(logit_scale: Tensor, logit_bias: Tensor | None, audio: Tensor) -> None:
    for name, scalar in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        if scalar is None and name == "logit_bias":
            continue
        if not isinstance(scalar, Tensor) or scalar.shape not in ((), (1,)) or not scalar.dtype.is_floating_point:
            raise ValueError(f"{name} is {scalar!r}; pass a floating-point tensor of shape [] or [1]")
        if scalar.device != audio.device:
            raise ValueError(f"{name} is on {scalar.device}, audio on {audio.device}; move one to the other")
