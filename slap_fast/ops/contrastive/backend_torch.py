"""The contrastive sums in plain PyTorch, by chunks of rows: any device, any float."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slap_fast.ops.tensor_checks import accumulator

# Elements of the logits held at once: 16 MiB in float32, small enough for the allocator to reuse between chunks.
_MAX_LOGITS = 1 << 22


def unavailable() -> str | None:
    return None


def rejects(**_traits: object) -> str | None:
    return None


class _Tile(NamedTuple):
    rows: slice
    audio: Tensor  # [c, D]
    similarity: Tensor  # [c, C]
    logits: Tensor  # [c, C]
    positive: Tensor  # [c, C] bool
    positives: Tensor  # [c], at least 1


def _tiles(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    *,
    offset: int,
    chunk_size: int,
) -> Iterator[_Tile]:
    """The similarities by chunks of rows; `text` and the scalars come in the accumulator's dtype."""
    if audio_ids is None or text_ids is None:
        audio_ids = torch.arange(offset, offset + audio.shape[0], device=audio.device)
        text_ids = torch.arange(text.shape[0], device=audio.device)
    if text.shape[0] == 0:
        return
    chunk_size = chunk_size or max(1, _MAX_LOGITS // text.shape[0])
    for begin in range(0, audio.shape[0], chunk_size):
        rows = slice(begin, begin + chunk_size)
        chunk = audio[rows].to(text.dtype)
        similarity = chunk @ text.T
        logits = similarity * logit_scale
        if logit_bias is not None:
            logits += logit_bias
        positive = audio_ids[rows, None] == text_ids
        yield _Tile(rows, chunk, similarity, logits, positive, positive.sum(1).clamp_min(1))


def _scalars(logit_scale: Tensor, logit_bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return logit_scale.reshape(()).to(dtype), None if logit_bias is None else logit_bias.reshape(()).to(dtype)


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
    rows, columns, dtype = audio.shape[0], text.shape[0], accumulator(audio.dtype)
    scale, bias = _scalars(logit_scale, logit_bias, dtype)
    row_loss = audio.new_full((rows,), -math.inf if kind == "infonce" else 0.0, dtype=dtype)
    column_sum = audio.new_zeros(columns, dtype=dtype)
    row_facts = audio.new_zeros(4, rows, dtype=dtype)
    row_facts[3] = -math.inf
    column_best = audio.new_full((2, columns), -math.inf, dtype=dtype)
    tiles = _tiles(audio, text.to(dtype), scale, bias, audio_ids, text_ids, offset=offset, chunk_size=chunk_size)
    for tile in tiles:
        positive_logits = tile.logits.masked_fill(~tile.positive, -math.inf)
        negative_logits = tile.logits.masked_fill(tile.positive, -math.inf)
        row_best = torch.stack([positive_logits.amax(1), negative_logits.amax(1)])
        previous, largest = column_best.amax(0), row_best.amax(0)
        column_best = torch.maximum(column_best, torch.stack([positive_logits.amax(0), negative_logits.amax(0)]))
        if kind == "infonce":
            row_loss[tile.rows] = (tile.logits - largest[:, None]).exp_().sum(1).log_()
            column_largest = column_best.amax(0)
            column_sum *= (previous - column_largest).exp_()
            column_sum += (tile.logits - column_largest).exp_().sum(0)
        else:
            row_loss[tile.rows] = -F.logsigmoid(torch.where(tile.positive, tile.logits, -tile.logits)).sum(1)
        negatives = (~tile.positive).sum(1).clamp_min(1)
        row_facts[0, tile.rows] = tile.similarity.masked_fill(~tile.positive, 0.0).sum(1) / tile.positives
        row_facts[1, tile.rows] = tile.similarity.masked_fill(tile.positive, 0.0).sum(1) / negatives
        row_facts[2, tile.rows] = (row_best[0] > row_best[1]).to(dtype)
        row_facts[3, tile.rows] = largest
    if kind == "infonce":
        return row_loss, column_sum.log_(), row_facts[0] * scale, row_facts, column_best
    return row_loss, column_sum, torch.zeros_like(row_loss), row_facts, column_best


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
    dtype = accumulator(audio.dtype)
    scale, bias = _scalars(logit_scale, logit_bias, dtype)
    columns = text.to(dtype)
    grad_audio, grad_text = torch.zeros_like(audio, memory_format=torch.contiguous_format), torch.zeros_like(columns)
    grad_scale, grad_bias = scale.new_zeros(()), scale.new_zeros(())
    column_largest = column_best.amax(0)
    tiles = _tiles(audio, columns, scale, bias, audio_ids, text_ids, offset=offset, chunk_size=chunk_size)
    for tile in tiles:
        row_grad = grad_row[tile.rows, None]
        if kind == "infonce":
            shifted = tile.logits - row_facts[3, tile.rows, None]
            grad_logits = shifted.sub_(row_loss[tile.rows, None]).exp_().mul_(row_grad)
            shifted = tile.logits - column_largest
            grad_logits += shifted.sub_(column_loss).exp_().mul_(grad_column)
            grad_logits += tile.positive * (grad_positive[tile.rows] / tile.positives)[:, None]
        else:
            sign = torch.where(tile.positive, -1.0, 1.0).to(dtype)
            grad_logits = sign * torch.sigmoid(sign * tile.logits) * row_grad
        grad_scale += (grad_logits * tile.similarity).sum()
        grad_bias += grad_logits.sum()
        grad_similarity = grad_logits.mul_(scale)
        grad_audio[tile.rows] = (grad_similarity @ columns).to(audio.dtype)
        grad_text.addmm_(grad_similarity.T, tile.audio)
    bias_like = logit_scale if logit_bias is None else logit_bias
    return (
        grad_audio,
        grad_text.to(text.dtype),
        grad_scale.to(logit_scale.dtype).reshape(logit_scale.shape),
        grad_bias.to(bias_like.dtype).reshape(bias_like.shape),
    )
