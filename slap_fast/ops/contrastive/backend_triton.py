"""The contrastive sums by Triton kernels and cuBLAS: no host synchronisation, fit for CUDA graphs, any width."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.tensor_checks import matrix


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call, None if they can."""
    return triton_support.rejects_dtype("embeddings", dtype) or triton_support.rejects_device(device)


def forward(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The statistics hold no rows of logits: `chunk_size` is for the gradients."""
    from slap_fast.kernels import contrastive as kernels

    audio, text = map(matrix, (audio, text))
    return kernels.sums(audio, text, logit_scale, logit_bias, _pair(audio_ids, text_ids), offset, kind)


def backward(
    grad_row: Tensor,
    grad_column: Tensor,
    grad_positive: Tensor,
    row_loss: Tensor,
    column_loss: Tensor,
    row_facts: Tensor,
    column_best: Tensor,
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from slap_fast.kernels import contrastive as kernels

    audio, text = map(matrix, (audio, text))
    vectors = (grad_row, grad_column, grad_positive, row_loss, column_loss, row_facts)
    grad_audio, grad_text, grad_scale, grad_bias = kernels.sums_backward(
        *(x.contiguous() for x in vectors),
        column_best,
        audio,
        text,
        logit_scale,
        logit_bias,
        _pair(audio_ids, text_ids),
        offset,
        kind,
        chunk_size,
    )
    bias = logit_scale if logit_bias is None else logit_bias
    return grad_audio, grad_text, grad_scale.to(logit_scale).view_as(logit_scale), grad_bias.to(bias).view_as(bias)


def _pair(audio_ids: Tensor | None, text_ids: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if audio_ids is None or text_ids is None:
        return None
    return audio_ids.contiguous(), text_ids.contiguous()
