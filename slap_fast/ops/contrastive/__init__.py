"""The contrastive loss between N audio and N text embeddings: softmax (InfoNCE) or pairwise sigmoid, over any ranks.

Softmax: CLIP (arXiv 2103.00020, figure 3), symmetric over both directions. Sigmoid: SigLIP (arXiv 2303.15343,
algorithm 1). The `[N, N]` similarities are recomputed in the backward, by chunks of rows.

Across ranks each rank keeps its own audio rows against the text columns of all, gathered or passed round in a ring.
Gathered, a row's log-sum-exp is whole at once; a column's is combined from one vector per rank, so that one matrix
product serves both directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import autocast, collectives, dispatch
from slap_fast.ops.contrastive import (
    backend_native as contrastive_native,
)
from slap_fast.ops.contrastive import (
    backend_torch as contrastive_torch,
)
from slap_fast.ops.contrastive import (
    backend_triton as contrastive_triton,
)
from slap_fast.ops.contrastive.call import ContrastiveBackend
from slap_fast.ops.contrastive.ring import ring_sums
from slap_fast.ops.contrastive.validation import validate, validate_backward, validate_sums
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.tensor_checks import accumulator

# In the order of preference.
BACKENDS: dict[str, ContrastiveBackend] = {
    "native": contrastive_native,
    "triton": contrastive_triton,
    "torch": contrastive_torch,
}
dispatch.register(
    "contrastive_loss",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


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


def _select(audio: Tensor, kind: str, backend: str) -> str:
    return dispatch.select("contrastive_loss", backend, device=audio.device, dtype=audio.dtype, kind=kind)


def _check(*args: Any) -> tuple:
    validate_sums(*args[:-1])
    audio, kind, backend = args[0], args[-3], args[-1]
    return *args[:-1], _select(audio, kind, backend)


def _check_backward(*args: Any) -> tuple:
    facts, forward = args[:7], args[7:]
    checked = _check(*forward)
    validate_backward(*facts, rows=forward[0], columns=forward[1])
    return *facts, *checked


@custom_op("slap_fast::contrastive_sums", check=_check, rule=autocast.low, cast=("audio", "text"))
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
    """`ContrastiveBackend.forward`; its first three results are differentiable."""
    return BACKENDS[backend].forward(
        audio, text, logit_scale, logit_bias, audio_ids, text_ids, offset, kind, chunk_size
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
    rows, columns, dtype = audio.shape[0], text.shape[0], accumulator(audio.dtype)
    row_loss, row_positive = audio.new_empty(rows, dtype=dtype), audio.new_empty(rows, dtype=dtype)
    column_loss, column_best = audio.new_empty(columns, dtype=dtype), audio.new_empty(2, columns, dtype=dtype)
    return row_loss, column_loss, row_positive, audio.new_empty(4, rows, dtype=dtype), column_best


@custom_op("slap_fast::contrastive_sums_backward", check=_check_backward)
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
    """`ContrastiveBackend.backward`."""
    return BACKENDS[backend].backward(
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
        offset,
        kind,
        chunk_size,
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
    exchange: str = "gather",
    chunk_size: int | None = None,
    backend: str = "auto",
) -> ContrastiveOutput:
    """Contrast B audio embeddings with their B texts and with those of every other clip of the group.

    infonce: the cross-entropy of `logit_scale * audio @ text.T` with the diagonal, averaged over the rows of both
    directions. sigmoid: the sum over all pairs of `-log sigmoid(z * (logit_scale * similarity + logit_bias))`, z = 1
    for positives and -1 for negatives, divided by the global number of clips.

    Args:
        audio: `[B, D]` float32, bfloat16, float16 or float64, L2-normalised by the caller. Products and sums are in
            float32 (float64 for float64), of embeddings in the low type under autocast.
        text: `[B, D]`; row i belongs to row i of `audio`. Same dtype and device.
        logit_scale: the multiplier itself (already exponentiated), one element of shape `[]` or `[1]`, any float dtype.
        logit_bias: one element, added to the logits. The softmax does not see it: its gradient is then 0.
        kind: "infonce" or "sigmoid".
        ids: `[B]` int64; clips that share an id, on any rank, are positives of each other. The softmax then has a
            target that is uniform over them. None: every clip is its own.
        group: the ranks that share the batch, each with its own B clips, which may differ and may be 0; None: this
            process alone. See `collectives` for the gradient convention.
        exchange: how ranks meet each other's texts. "gather": every rank holds the texts of all, and their gradients,
            for one product. "ring": blocks of them pass from rank to rank while products run, so that a rank's memory
            does not grow with the number of ranks; see `contrastive_ring`. The result is the same.
        chunk_size: rows whose logits are held at once; None: as many as a fixed amount of memory holds.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        A `ContrastiveOutput`. With no clip on any rank everything is 0.

    Raises:
        ValueError: shapes, dtypes, devices, `kind`, `exchange` or `chunk_size` that do not fit, or a backend that
            cannot serve.
    """
    audio, text = autocast.cast(autocast.low, audio, text)
    validate(audio, text, logit_scale, logit_bias, kind, ids, chunk_size, exchange)
    chosen = _select(audio, kind, backend)
    clips, ranks = audio.shape[0], collectives.world_size(group)
    sizes = [clips] if group is None else collectives.gather_sizes(clips, audio.device, group)
    bias = logit_bias if kind == "sigmoid" else None
    if exchange == "ring" and group is not None and ranks > 1:
        row_loss, column_loss, row_positive, row_facts, best = ring_sums(
            BACKENDS[chosen],
            audio,
            text,
            logit_scale,
            bias,
            ids,
            sizes=sizes,
            kind=kind,
            chunk_size=chunk_size or 0,
            group=group,
        )
    else:
        offset = 0 if group is None else sum(sizes[: dist.get_rank(group)])
        all_text = collectives.gather_rows(text, sizes, group)
        all_ids = None if ids is None else collectives.gather_rows(ids, sizes, group)
        row_loss, column_loss, row_positive, row_facts, column_best = _contrastive_sums(
            audio, all_text, logit_scale, bias, ids, all_ids, offset, kind, chunk_size or 0, chosen
        )
        own = slice(offset, offset + clips)
        best = collectives.max_over_ranks(column_best, group)[:, own]
        if kind == "infonce":
            _, column_loss = collectives.logsumexp_over_ranks(column_best.amax(0), column_loss, group)
        column_loss = column_loss[own]
    positive, negative, row_accuracy, row_largest = row_facts.unbind()
    if kind == "infonce":
        # Summed over all clips the mean logit of the positives is the same by rows as by columns.
        excess = (row_largest.detach() + best.amax(0).detach()) / 2 - row_positive
        local_sum = (excess + (row_loss + column_loss) / 2).sum()
        if logit_bias is not None:
            local_sum = local_sum + 0.0 * logit_bias.sum().to(local_sum.dtype)
    else:
        local_sum = row_loss.sum()
    loss = local_sum * (ranks / max(sum(sizes), 1))
    facts = torch.stack([(row_accuracy + (best[0] > best[1])) / 2, positive, negative]).detach()
    return ContrastiveOutput(loss, *(facts.sum(1) / max(clips, 1)).unbind())
