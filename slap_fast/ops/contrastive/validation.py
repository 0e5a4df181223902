"""What `contrastive_loss` checks at its door."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.tensor_checks import accumulator, require


def validate(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    kind: str,
    ids: Tensor | None,
    chunk_size: int | None,
    exchange: str,
) -> None:
    """Raise the ValueError that `contrastive_loss` documents, if anything does not fit."""
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


def validate_sums(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    _offset: int,
    kind: str,
    chunk_size: int,
) -> None:
    """Raise the ValueError for what the registered op would misread."""
    _require_kind(kind)
    if audio.dim() != 2 or not audio.dtype.is_floating_point:
        raise ValueError(f"audio is {audio.dtype} of shape {tuple(audio.shape)}; pass floating-point [R, D]")
    require("text", text, (text.shape[0] if text.dim() else 0, audio.shape[1]), audio.dtype, audio.device)
    _require_scalars(logit_scale, logit_bias, audio)
    if (audio_ids is None) != (text_ids is None):
        raise ValueError("audio_ids and text_ids come together; pass both or neither")
    for name, ids, rows in (("audio_ids", audio_ids, audio), ("text_ids", text_ids, text)):
        if ids is not None:
            require(name, ids, rows.shape[:1], torch.int64, audio.device)
    if chunk_size < 0:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or 0 for a fixed amount of memory")


def validate_backward(
    grad_row: Tensor,
    grad_column: Tensor,
    grad_positive: Tensor,
    row_loss: Tensor,
    column_loss: Tensor,
    row_facts: Tensor,
    column_best: Tensor,
    *,
    rows: Tensor,
    columns: Tensor,
) -> None:
    """The same for what its backward takes beside the inputs of the forward."""
    dtype, device = accumulator(rows.dtype), rows.device
    for name, x in (("grad_row", grad_row), ("grad_positive", grad_positive), ("row_loss", row_loss)):
        require(name, x, rows.shape[:1], dtype, device)
    for name, x in (("grad_column", grad_column), ("column_loss", column_loss)):
        require(name, x, columns.shape[:1], dtype, device)
    require("row_facts", row_facts, (4, rows.shape[0]), dtype, device)
    require("column_best", column_best, (2, columns.shape[0]), dtype, device)


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
