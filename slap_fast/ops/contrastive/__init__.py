"""Contrastive loss between audio and text embeddings, softmax (InfoNCE) or pairwise sigmoid, across any ranks.

    loss, accuracy, *_ = contrastive_loss(audio, text, logit_scale, group=group)    # [B, D], [B, D], [] -> [], []

InfoNCE as in CLIP (arXiv 2103.00020, figure 3); sigmoid as in SigLIP (arXiv 2303.15343, algorithm 1). The `[N, N]`
logits never exist as a whole: both passes compute them chunk by chunk.

Each rank multiplies its own audio rows with the text columns of all ranks, which it gathers, or receives block by block
in a ring (ring.py). One product serves both directions: gathered rows are complete, and a column's log-sum-exp is
combined from one vector per rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import autocast, collectives, dispatch
from slap_fast.ops.contrastive import backend_native, backend_torch, backend_triton
from slap_fast.ops.contrastive.call import (
    Backend,
    BackwardInputs,
    ContrastiveCall,
    Sums,
    check,
    check_backward,
    select,
    validate_batch,
)
from slap_fast.ops.contrastive.ring import ring_sums
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.tensor_checks import accumulator

# In order of preference.
BACKENDS: dict[str, Backend] = {"native": backend_native, "triton": backend_triton, "torch": backend_torch}
dispatch.register(
    "contrastive_loss",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


class ContrastiveOutput(NamedTuple):
    """Scalars, float32 (float64 for float64). All but `loss` are detached and concern this rank's own clips.

    Attributes:
        loss: this rank's share of the global loss, scaled so that the mean over ranks, of losses and of gradients, is
            the global loss and its gradient.
        accuracy: share of queries, over both directions, whose best positive exceeds every negative; a tie does not.
        positive_similarity: mean over audio rows of the row's mean cosine with its positives.
        negative_similarity: the same with its negatives; 0 for a row without negatives.
    """

    loss: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


@custom_op("slap_fast::contrastive_sums", check=check, rule=autocast.low, cast=("audio", "text"))
def _contrastive_sums(call: ContrastiveCall, backend: str) -> Sums:
    """`Backend.forward`. The first three results are differentiable."""
    return BACKENDS[backend].forward(call)


@_contrastive_sums.register_fake
def _(call: ContrastiveCall, backend: str) -> Sums:
    rows, columns, dtype = call.audio.shape[0], call.text.shape[0], accumulator(call.audio.dtype)
    shapes = ((rows,), (columns,), (rows,), (4, rows), (2, columns))
    row_loss, column_loss, row_positive, row_stats, column_best = (call.audio.new_empty(x, dtype=dtype) for x in shapes)
    return row_loss, column_loss, row_positive, row_stats, column_best


@custom_op("slap_fast::contrastive_sums_backward", check=check_backward)
def _contrastive_sums_backward(
    call: ContrastiveCall, inputs: BackwardInputs, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return BACKENDS[backend].backward(call, inputs)


@_contrastive_sums_backward.register_fake
def _(call: ContrastiveCall, inputs: BackwardInputs, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = call.logit_scale if call.logit_bias is None else call.logit_bias
    audio, text, scale, bias = (x.new_empty(x.shape) for x in (call.audio, call.text, call.logit_scale, bias))
    return audio, text, scale, bias


def _setup_context(ctx: Any, inputs: tuple[ContrastiveCall, str], output: Sums) -> None:
    call, ctx.backend = inputs
    row_loss, column_loss, _, row_stats, column_best = output
    ctx.save_for_backward(*call[:6], row_loss, column_loss, row_stats, column_best)
    ctx.settings = call[6:]


def _backward(
    ctx: Any, grad_row: Tensor, grad_column: Tensor, grad_positive: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    *tensors, row_loss, column_loss, row_stats, column_best = ctx.saved_tensors
    call = ContrastiveCall(*tensors, *ctx.settings)
    inputs = BackwardInputs(row_loss, column_loss, row_stats, column_best, grad_row, grad_column, grad_positive)
    *grads, grad_bias = _contrastive_sums_backward(call, inputs, ctx.backend)
    return *grads, None if call.logit_bias is None else grad_bias, *[None] * 6


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
    """Contrastive loss of B audio-text pairs, whose negatives are the other clips of all ranks.

    With N clips on all ranks:

        logits = logit_scale * audio @ text.T                                                    # [N, N]
        infonce = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        sigmoid = -logsigmoid(sign * (logits + logit_bias)).sum() / N

    `target` is the clip itself, or uniform over the clips that share its id; `sign` is 1 for positives, -1 for
    negatives.

    Args:
        audio: `[B, D]` float32, bfloat16, float16 or float64, L2-normalized by the caller. Products and sums are
            float32 (float64 for float64); under autocast `audio` and `text` are cast to its dtype first.
        text: `[B, D]`, row i belongs to row i of `audio`; dtype and device of `audio`.
        logit_scale: multiplier of the logits, already exponentiated; floating point, shape `[]` or `[1]`.
        logit_bias: floating point, shape `[]` or `[1]`. InfoNCE does not depend on it: its gradient is then 0.
        kind: "infonce" or "sigmoid".
        ids: `[B]` int64; clips with the same id, on any rank, are positives of each other. None: each clip only of
            itself.
        group: the ranks that share the batch; B may differ and may be 0. None: this process alone. See `collectives`
            for the gradient convention.
        exchange: "gather": each rank holds the texts of all ranks, and their gradients. "ring": blocks of texts pass
            from rank to rank during the products, so that memory does not grow with the number of ranks. The results
            are equal.
        chunk_size: rows whose logits are held at once; None: as many as fit a fixed amount of memory.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        A `ContrastiveOutput`; zeros if no rank has a clip.

    Raises:
        ValueError: shapes, dtypes, devices, `kind`, `exchange` or `chunk_size` that do not fit, or a backend that
            cannot serve.
    """
    audio, text = autocast.cast(autocast.low, audio, text)
    validate_batch(audio, text, logit_scale, logit_bias, kind=kind, ids=ids, chunk_size=chunk_size, exchange=exchange)
    bias = logit_bias if kind == "sigmoid" else None
    call = ContrastiveCall(audio, text, logit_scale, bias, ids, ids, 0, kind, chunk_size or 0)
    chosen = select(call, backend)
    clips, ranks = audio.shape[0], collectives.world_size(group)
    sizes = [clips] if group is None else collectives.all_gather_sizes(clips, audio.device, group)
    if group is None or ranks == 1:
        sums = _contrastive_sums(call, chosen)
    elif exchange == "ring":
        sums = ring_sums(BACKENDS[chosen], call, sizes, group)
    else:
        sums = _gathered_sums(call, sizes, group, chosen)
    row_loss, column_loss, row_positive, row_stats, column_best = sums
    positive, negative, row_is_right, row_largest = row_stats.unbind()
    if kind == "infonce":
        # Over all clips the mean logit of the positives is the same by rows as by columns.
        excess = (row_largest.detach() + column_best.amax(0).detach()) / 2 - row_positive
        local_sum = (excess + (row_loss + column_loss) / 2).sum()
        if logit_bias is not None:
            local_sum = local_sum + 0.0 * logit_bias.sum().to(local_sum.dtype)
    else:
        local_sum = row_loss.sum()
    loss = local_sum * (ranks / max(sum(sizes), 1))
    is_right = (row_is_right + (column_best[0] > column_best[1])) / 2
    means = torch.stack([is_right, positive, negative]).detach().sum(1) / max(clips, 1)
    return ContrastiveOutput(loss, *means.unbind())


def _gathered_sums(call: ContrastiveCall, sizes: list[int], group: dist.ProcessGroup, backend: str) -> Sums:
    """`Backend.forward` for this rank's rows against all columns, and for its columns against all rows."""
    offset = sum(sizes[: dist.get_rank(group)])
    own = slice(offset, offset + call.audio.shape[0])
    text = collectives.all_gather_rows(call.text, sizes, group)
    ids = None if call.text_ids is None else collectives.all_gather_rows(call.text_ids, sizes, group)
    gathered = call._replace(text=text, text_ids=ids, offset=offset)
    row_loss, column_loss, row_positive, row_stats, column_best = _contrastive_sums(gathered, backend)
    best = collectives.detached_all_reduce_max(column_best, group)[:, own]
    if call.kind == "infonce":
        _, column_loss = collectives.all_reduce_logsumexp(column_best.amax(0), column_loss, group)
    return row_loss, column_loss[own], row_positive, row_stats, best
