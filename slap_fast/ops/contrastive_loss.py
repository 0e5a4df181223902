"""The contrastive loss between N audio and N text embeddings: softmax (InfoNCE) or pairwise sigmoid, over any ranks.

Softmax: CLIP (arXiv 2103.00020, figure 3), symmetric over both directions. Sigmoid: SigLIP (arXiv 2303.15343,
algorithm 1). The `[N, N]` similarities are recomputed in the backward, by chunks of rows.

Across ranks each rank keeps its own audio rows against the gathered text columns. A row's log-sum-exp is then whole at
once; a column's is combined from one vector per rank, so that one matrix product serves both directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from slap_fast.ops import collectives, dispatch

# Elements of the logits held at once: 16 MiB in float32, small enough for the allocator to reuse between chunks.
_MAX_LOGITS = 1 << 22


class ContrastiveOutput(NamedTuple):
    """Scalars, float32 (float64 for float64 inputs); all but `loss` are detached and concern this rank's own clips.

    Attributes:
        loss: this rank's share of the global loss, scaled so that its mean over ranks is that loss, and the mean of the
            gradients over ranks that loss' gradient.
        accuracy: share of queries, over both directions, whose best positive beats every negative; a tie does not.
        positive_similarity: mean over audio rows of the mean cosine with the row's positives.
        negative_similarity: the same for negatives; 0 where there is none.
    """

    loss: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


@torch.library.custom_op("slap_fast::contrastive_sums", mutates_args=())
def _contrastive_sums(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums over this rank's logits `logit_scale * audio @ text.T + logit_bias`, of R rows and C columns.

    Row i's positive is column `offset + i`, or with ids every column of its id. A `chunk_size` of 0 leaves the
    choice to the backend.

    Returns:
        row_loss: `[R]` log-sum-exp of each row less its largest logit (infonce), or its summed pair losses (sigmoid).
        column_loss: `[C]` log-sum-exp of each column less its largest logit (infonce), or zeros.
        row_positive: `[R]` mean logit of each row's positives (infonce), or zeros.
        row_facts: `[4, R]` of each row: mean similarity of positives, of negatives, 1 if top-1 is right, largest logit.
        column_best: `[2, C]` largest logit of each column among positives and negatives; -inf for none.

    The first three are differentiable.
    """
    return _sums_torch(
        audio, text, logit_scale, logit_bias, audio_ids, text_ids, offset=offset, kind=kind, chunk_size=chunk_size
    )


@_contrastive_sums.register_fake
def _(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, columns, dtype = audio.shape[0], text.shape[0], _accumulator(audio.dtype)
    row_loss, row_positive = audio.new_empty(rows, dtype=dtype), audio.new_empty(rows, dtype=dtype)
    column_loss, column_best = audio.new_empty(columns, dtype=dtype), audio.new_empty(2, columns, dtype=dtype)
    return row_loss, column_loss, row_positive, audio.new_empty(4, rows, dtype=dtype), column_best


@torch.library.custom_op("slap_fast::contrastive_sums_backward", mutates_args=())
def _contrastive_sums_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of audio, text, logit_scale and logit_bias (zero where there is none)."""
    return _sums_backward_torch(
        grad_row,
        grad_column,
        grad_positive,
        row_loss,
        column_loss,
        row_facts,
        column_best,
        audio,
        text,
        logit_scale,
        logit_bias,
        audio_ids,
        text_ids,
        offset=offset,
        kind=kind,
        chunk_size=chunk_size,
    )


@_contrastive_sums_backward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = logit_scale if logit_bias is None else logit_bias
    return (
        audio.new_empty(audio.shape),
        text.new_empty(text.shape),
        logit_scale.new_empty(logit_scale.shape),
        bias.new_empty(bias.shape),
    )


dispatch.register("contrastive_loss", [dispatch.Backend(name="torch")])


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Tile(NamedTuple):
    rows: slice
    audio: Tensor  # [c, D]
    similarity: Tensor  # [c, C]
    logits: Tensor  # [c, C]
    positive: Tensor  # [c, C] bool
    positives: Tensor  # [c]


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
    chunk_size = chunk_size or max(1, _MAX_LOGITS // max(1, text.shape[0]))
    for begin in range(0, audio.shape[0], chunk_size):
        rows = slice(begin, begin + chunk_size)
        chunk = audio[rows].to(text.dtype)
        similarity = chunk @ text.T
        logits = similarity * logit_scale
        if logit_bias is not None:
            logits += logit_bias
        positive = audio_ids[rows, None] == text_ids
        yield _Tile(rows, chunk, similarity, logits, positive, positive.sum(1))


def _scalars(logit_scale: Tensor, logit_bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return logit_scale.reshape(()).to(dtype), None if logit_bias is None else logit_bias.reshape(()).to(dtype)


def _sums_torch(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    *,
    offset: int,
    kind: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, columns, dtype = audio.shape[0], text.shape[0], _accumulator(audio.dtype)
    scale, bias = _scalars(logit_scale, logit_bias, dtype)
    row_loss = audio.new_empty(rows, dtype=dtype)
    column_sum = audio.new_zeros(columns, dtype=dtype)
    row_facts = audio.new_empty(4, rows, dtype=dtype)
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
        negatives = (columns - tile.positives).clamp_min(1)
        row_facts[0, tile.rows] = tile.similarity.masked_fill(~tile.positive, 0.0).sum(1) / tile.positives
        row_facts[1, tile.rows] = tile.similarity.masked_fill(tile.positive, 0.0).sum(1) / negatives
        row_facts[2, tile.rows] = (row_best[0] > row_best[1]).to(dtype)
        row_facts[3, tile.rows] = largest
    if kind == "infonce":
        return row_loss, column_sum.log_(), row_facts[0] * scale, row_facts, column_best
    return row_loss, column_sum, torch.zeros_like(row_loss), row_facts, column_best


def _sums_backward_torch(
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
    *,
    offset: int,
    kind: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _accumulator(audio.dtype)
    scale, bias = _scalars(logit_scale, logit_bias, dtype)
    columns = text.to(dtype)
    grad_audio, grad_text = torch.empty_like(audio, memory_format=torch.contiguous_format), torch.zeros_like(columns)
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


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, offset, kind, chunk_size, backend = inputs
    row_loss, column_loss, _, row_facts, column_best = output
    ctx.save_for_backward(row_loss, column_loss, row_facts, column_best, *tensors)
    ctx.settings = (offset, kind, chunk_size, backend)


def _backward(
    ctx: Any, grad_row: Tensor, grad_column: Tensor, grad_positive: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    saved, settings = ctx.saved_tensors, ctx.settings
    *grads, grad_bias = _contrastive_sums_backward(grad_row, grad_column, grad_positive, *saved, *settings)
    has_bias = saved[7] is not None
    return *grads, grad_bias if has_bias else None, *[None] * 6


_contrastive_sums.register_autograd(_backward, setup_context=_setup_context)


def contrastive_loss(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    kind: str = "infonce",
    ids: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> ContrastiveOutput:
    """Contrast B audio embeddings with their B texts and with those of every other clip of the group.

    infonce: the cross-entropy of `logit_scale * audio @ text.T` with the diagonal, averaged over the rows of both
    directions. sigmoid: the sum over all pairs of `-log sigmoid(z * (logit_scale * similarity + logit_bias))`, z = 1
    for positives and -1 for negatives, divided by the global number of clips.

    Args:
        audio: `[B, D]` float32, bfloat16, float16 or float64, L2-normalised by the caller. Products and sums are in
            float32 (float64 for float64).
        text: `[B, D]`; row i belongs to row i of `audio`. Same dtype and device.
        logit_scale: the multiplier itself (already exponentiated), one element of shape `[]` or `[1]`, any float dtype.
        logit_bias: one element, added to the logits. The softmax does not see it: its gradient is then 0.
        kind: "infonce" or "sigmoid".
        ids: `[B]` int64; clips that share an id, on any rank, are positives of each other. The softmax then has a
            target that is uniform over them. None: every clip is its own.
        group: the ranks that share the batch, each with its own B clips, which may differ and may be 0; None: this
            process alone. See `collectives` for the gradient convention.
        chunk_size: rows whose logits are held at once; None: as many as a fixed amount of memory holds.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        A `ContrastiveOutput`. With no clip on any rank everything is 0.

    Raises:
        ValueError: shapes, dtypes, devices, `kind` or `chunk_size` that do not fit, or a backend that cannot serve.
    """
    _validate(audio, text, logit_scale, logit_bias, kind, ids, chunk_size)
    chosen = dispatch.select("contrastive_loss", backend, device=audio.device, dtype=audio.dtype, kind=kind)
    clips = audio.shape[0]
    offset, total = 0, clips
    all_text, all_ids = text, ids
    if group is not None:
        sizes = collectives.gather_sizes(clips, audio.device, group)
        offset, total = sum(sizes[: dist.get_rank(group)]), sum(sizes)
        all_text = collectives.gather_rows(text, sizes, group)
        all_ids = None if ids is None else collectives.gather_rows(ids, sizes, group)
    row_loss, column_loss, row_positive, row_facts, column_best = _contrastive_sums(
        audio,
        all_text,
        logit_scale,
        logit_bias if kind == "sigmoid" else None,
        ids,
        all_ids,
        offset,
        kind,
        chunk_size or 0,
        chosen,
    )
    own = slice(offset, offset + clips)
    positive, negative, row_accuracy, row_largest = row_facts.unbind()
    best = collectives.max_over_ranks(column_best, group)[:, own]
    if kind == "infonce":
        column_largest, column_loss = collectives.logsumexp_over_ranks(column_best.amax(0), column_loss, group)
        # Summed over all clips the mean logit of the positives is the same by rows as by columns.
        excess = (row_largest.detach() + column_largest[own]) / 2 - row_positive
        local_sum = (excess + (row_loss + column_loss[own]) / 2).sum()
        if logit_bias is not None:
            local_sum = local_sum + 0.0 * logit_bias.sum().to(local_sum.dtype)
    else:
        local_sum = row_loss.sum()
    loss = local_sum * (collectives.world_size(group) / max(total, 1))
    facts = torch.stack([(row_accuracy + (best[0] > best[1])) / 2, positive, negative]).detach()
    return ContrastiveOutput(loss, *(facts.sum(1) / max(clips, 1)).unbind())


def _validate(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    kind: str,
    ids: Tensor | None,
    chunk_size: int | None,
) -> None:
    if kind not in ("infonce", "sigmoid"):
        raise ValueError(f"kind is {kind!r}; choose 'infonce' or 'sigmoid'")
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
