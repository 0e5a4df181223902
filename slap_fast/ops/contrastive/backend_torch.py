"""PyTorch backend, any device: logits of one chunk of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slap_fast.ops.contrastive.call import BackwardInputs, ContrastiveCall, Sums
from slap_fast.ops.tensor_checks import accumulator

# Elements of the logits held at once: 16 MiB in float32, small enough for the allocator to reuse between chunks.
_MAX_LOGITS = 1 << 22


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


class _Chunk(NamedTuple):
    rows: slice
    audio: Tensor  # [c, D]
    similarity: Tensor  # [c, C]
    logits: Tensor  # [c, C]
    positive: Tensor  # [c, C] bool
    positives: Tensor  # [c], at least 1


def _precise(call: ContrastiveCall) -> ContrastiveCall:
    """The call with text and scalars in the accumulator's dtype, scalars of shape `[]`."""
    dtype = accumulator(call.audio.dtype)
    return call._replace(
        text=call.text.to(dtype),
        logit_scale=call.logit_scale.reshape(()).to(dtype),
        logit_bias=None if call.logit_bias is None else call.logit_bias.reshape(()).to(dtype),
    )


def _chunks(call: ContrastiveCall) -> Iterator[_Chunk]:
    """Similarities and logits of a `_precise` call by chunks of rows."""
    audio, text, audio_ids, text_ids = call.audio, call.text, call.audio_ids, call.text_ids
    if audio_ids is None or text_ids is None:
        audio_ids = torch.arange(call.offset, call.offset + audio.shape[0], device=audio.device)
        text_ids = torch.arange(text.shape[0], device=audio.device)
    if text.shape[0] == 0:
        return
    chunk_size = call.chunk_size or max(1, _MAX_LOGITS // text.shape[0])
    for begin in range(0, audio.shape[0], chunk_size):
        rows = slice(begin, begin + chunk_size)
        chunk = audio[rows].to(text.dtype)
        similarity = chunk @ text.T
        logits = similarity * call.logit_scale
        if call.logit_bias is not None:
            logits += call.logit_bias
        positive = audio_ids[rows, None] == text_ids
        yield _Chunk(rows, chunk, similarity, logits, positive, positive.sum(1).clamp_min(1))


def forward(call: ContrastiveCall) -> Sums:
    """See `Backend.forward`."""
    rows, columns, dtype = call.audio.shape[0], call.text.shape[0], accumulator(call.audio.dtype)
    infonce, call = call.kind == "infonce", _precise(call)
    row_loss = call.text.new_full((rows,), -math.inf if infonce else 0.0)
    column_sum = call.text.new_zeros(columns)
    row_stats = call.text.new_zeros(4, rows)
    row_stats[3] = -math.inf
    column_best = call.text.new_full((2, columns), -math.inf)
    for chunk in _chunks(call):
        positive_logits = chunk.logits.masked_fill(~chunk.positive, -math.inf)
        negative_logits = chunk.logits.masked_fill(chunk.positive, -math.inf)
        row_best = torch.stack([positive_logits.amax(1), negative_logits.amax(1)])
        previous, largest = column_best.amax(0), row_best.amax(0)
        column_best = torch.maximum(column_best, torch.stack([positive_logits.amax(0), negative_logits.amax(0)]))
        if infonce:
            row_loss[chunk.rows] = (chunk.logits - largest[:, None]).exp_().sum(1).log_()
            column_largest = column_best.amax(0)
            column_sum *= (previous - column_largest).exp_()
            column_sum += (chunk.logits - column_largest).exp_().sum(0)
        else:
            row_loss[chunk.rows] = -F.logsigmoid(torch.where(chunk.positive, chunk.logits, -chunk.logits)).sum(1)
        negatives = (~chunk.positive).sum(1).clamp_min(1)
        row_stats[0, chunk.rows] = chunk.similarity.masked_fill(~chunk.positive, 0.0).sum(1) / chunk.positives
        row_stats[1, chunk.rows] = chunk.similarity.masked_fill(chunk.positive, 0.0).sum(1) / negatives
        row_stats[2, chunk.rows] = (row_best[0] > row_best[1]).to(dtype)
        row_stats[3, chunk.rows] = largest
    if infonce:
        return row_loss, column_sum.log_(), row_stats[0] * call.logit_scale, row_stats, column_best
    return row_loss, column_sum, torch.zeros_like(row_loss), row_stats, column_best


def backward(call: ContrastiveCall, inputs: BackwardInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    audio, scale_like = call.audio, call.logit_scale
    text_dtype, bias_like = call.text.dtype, scale_like if call.logit_bias is None else call.logit_bias
    call = _precise(call)
    text, scale = call.text, call.logit_scale
    grad_audio, grad_text = torch.zeros_like(audio, memory_format=torch.contiguous_format), torch.zeros_like(text)
    grad_scale, grad_bias = scale.new_zeros(()), scale.new_zeros(())
    column_largest = inputs.column_best.amax(0)
    for chunk in _chunks(call):
        row_grad = inputs.grad_row[chunk.rows, None]
        if call.kind == "infonce":
            shifted = chunk.logits - inputs.row_stats[3, chunk.rows, None]
            grad_logits = shifted.sub_(inputs.row_loss[chunk.rows, None]).exp_().mul_(row_grad)
            shifted = chunk.logits - column_largest
            grad_logits += shifted.sub_(inputs.column_loss).exp_().mul_(inputs.grad_column)
            grad_logits += chunk.positive * (inputs.grad_positive[chunk.rows] / chunk.positives)[:, None]
        else:
            sign = torch.where(chunk.positive, -1.0, 1.0).to(text.dtype)
            grad_logits = sign * torch.sigmoid(sign * chunk.logits) * row_grad
        grad_scale += (grad_logits * chunk.similarity).sum()
        grad_bias += grad_logits.sum()
        grad_similarity = grad_logits.mul_(scale)
        grad_audio[chunk.rows] = (grad_similarity @ text).to(audio.dtype)
        grad_text.addmm_(grad_similarity.T, chunk.audio)
    return (
        grad_audio,
        grad_text.to(text_dtype),
        grad_scale.to(scale_like.dtype).reshape(scale_like.shape),
        grad_bias.to(bias_like.dtype).reshape(bias_like.shape),
    )
