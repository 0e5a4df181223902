"""What `contrastive_loss` checks at its door."""

from __future__ import annotations

import torch
from torch import Tensor


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
    if kind not in ("infonce", "sigmoid"):
        raise ValueError(f"kind is {kind!r}; choose 'infonce' or 'sigmoid'")
    if exchange not in ("gather", "ring"):
        raise ValueError(f"exchange is {exchange!r}; choose 'gather' or 'ring'")
    if audio.dim() != 2 or audio.shape != text.shape:
        raise ValueError(f"audio, text have shapes {tuple(audio.shape)}, {tuple(text.shape)}; pass two of [B, D]")
    if audio.dtype != text.dtype or not audio.dtype.is_floating_point:
        raise ValueError(f"audio, text are {audio.dtype}, {text.dtype}; pass one floating-point dtype")
    for name, scalar in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        if scalar is None and name == "logit_bias":
            continue
        if not isinstance(scalar, Tensor) or scalar.shape not in ((), (1,)) or not scalar.dtype.is_floating_point:
            raise ValueError(f"{name} is {scalar!r}; pass a floating-point tensor of shape [] or [1]")
        if scalar.device != audio.device:
            raise ValueError(f"{name} is on {scalar.device}, audio on {audio.device}; move one to the other")
    if text.device != audio.device:
        raise ValueError(f"text is on {text.device}, audio on {audio.device}; move one to the other")
    if ids is not None and (ids.shape != audio.shape[:1] or ids.dtype != torch.int64 or ids.device != audio.device):
        raise ValueError(
            f"ids is {ids.dtype} of shape {tuple(ids.shape)} on {ids.device}; pass [{audio.shape[0]}] int64 on "
            f"{audio.device}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or None")
