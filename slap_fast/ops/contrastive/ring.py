"""Ring exchange of `contrastive_loss`: text blocks pass from rank to rank, so memory does not grow with their number.

Each rank keeps its audio rows. The text blocks, one per rank, move to the previous rank after each step; after as many
steps as there are ranks, every row has met every column. Transfers overlap with the products. The sums of a block's
columns follow it one step behind and are complete when they reach its owner, as are, in the backward, the gradients of
its text. A rank holds two text blocks and, in the backward, three gradient blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import collectives
from slap_fast.ops.contrastive.call import Backend, BackwardInputs, ContrastiveCall, Sums
from slap_fast.ops.custom_op import once_differentiable
from slap_fast.ops.tensor_checks import accumulator


def ring_sums(backend: Backend, call: ContrastiveCall, sizes: Sequence[int], group: dist.ProcessGroup) -> Sums:
    """`Backend.forward` for this rank's rows against the columns of all ranks, and for its columns against all rows.

    The first three results are differentiable, by the convention of `collectives`: gradients are those of the losses
    summed over ranks. Sums over blocks are in the accumulator's dtype; the gradients of each block are first rounded to
    the dtype of the embeddings.

    Args:
        backend: computes a block.
        call: this rank's R clips: rows, columns and ids, without an offset.
        sizes: clips of each rank, in rank order.
        group: more than one rank.

    Returns:
        Tensors of shapes `[R]`, `[R]`, `[R]`, `[4, R]`, `[2, R]`.
    """
    dtype = accumulator(call.audio.dtype)
    ring = _Ring(backend, call.kind, call.chunk_size, tuple(sizes), dist.get_rank(group), group)
    bias = None if call.logit_bias is None else call.logit_bias.to(dtype)
    ids = None if call.audio_ids is None else call.audio_ids.contiguous()
    return _RingSums.apply(call.audio, call.text.contiguous(), call.logit_scale.to(dtype), bias, ids, ring)


@dataclass(frozen=True)
class _Ring:
    backend: Backend
    kind: str
    chunk_size: int
    sizes: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup

    @property
    def world_size(self) -> int:
        return len(self.sizes)

    def owner(self, step: int) -> int:
        """The rank whose block is here in a step."""
        return (self.rank + step) % self.world_size

    def call(
        self, step: int, audio: Tensor, block: _Block, scale: Tensor, bias: Tensor | None, ids: Tensor | None
    ) -> ContrastiveCall:
        """This rank's rows against the block of a step."""
        # The column of the first row's own text, inside the block in step 0 only.
        offset = sum(self.sizes[: self.rank]) - sum(self.sizes[: self.owner(step)])
        return ContrastiveCall(audio, block.text, scale, bias, ids, block.ids, offset, self.kind, self.chunk_size)

    def positives(self, rows: int, ids: Tensor | None, block: _Block, step: int) -> Tensor:
        """`[rows]` int64: number of each row's positives in the block of a step."""
        if ids is None or block.ids is None:
            return torch.full((rows,), int(step == 0), device=block.text.device)
        ordered = block.ids.sort().values
        return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


class _Block(NamedTuple):
    """One rank's columns, sent on unchanged."""

    text: Tensor  # [C, D]
    ids: Tensor | None  # [C]
    columns: Tensor | None  # [4, C] in the backward: log-sum, best positive and negative, gradient of the log-sum

    def empty(self, size: int) -> _Block:
        """Memory to receive a block of `size` columns."""
        ids = None if self.ids is None else self.ids.new_empty(size)
        columns = None if self.columns is None else self.columns.new_empty(4, size)
        return _Block(self.text.new_empty(size, self.text.shape[1]), ids, columns)

    def tensors(self) -> list[Tensor]:
        return [x for x in self if x is not None]


class _Transfer:
    """The transfers of one step, which run until `wait`.

    This rank sends its current block and its results for the previous block to the previous rank. It receives the next
    block, and the other ranks' results for the current block, from the next rank.

    Attributes:
        block: the next block; None after the last step.
        results: of the other ranks for the current block; None in step 0.
        wait: ends the transfers.
    """

    def __init__(self, ring: _Ring, step: int, block: _Block, results: Tensor | None) -> None:
        """`results` for the previous block: `[3, C]` in the forward, `[C, D]` in the backward; None in step 0."""
        size = ring.sizes[ring.owner(step)]
        is_last = step + 1 >= ring.world_size
        self.block = None if is_last else block.empty(ring.sizes[ring.owner(step + 1)])
        self.results = None
        if results is not None:
            shape = (3, size) if block.columns is None else (size, block.text.shape[1])
            self.results = results.new_empty(shape)
        self.wait = collectives.start_ring_shift(
            [*([] if is_last else block.tensors()), *([] if results is None else [results])],
            [*([] if self.block is None else self.block.tensors()), *([] if self.results is None else [self.results])],
            ring.group,
        )


class _RingSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        audio: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        ids: Tensor | None,
        ring: _Ring,
    ) -> Sums:
        rows = _RowSums.empty(audio, ring.kind)
        block, columns = _Block(text, ids, None), None
        for step in range(ring.world_size):
            transfer = _Transfer(ring, step, block, columns)
            call = ring.call(step, audio, block, scale, bias, ids)
            row_loss, column_loss, _, row_stats, column_best = ring.backend.forward(call)
            positives = ring.positives(audio.shape[0], ids, block, step)
            rows = rows.joined(row_loss, row_stats, positives, block.text.shape[0], ring.kind)
            part = torch.cat([column_loss[None], column_best])
            transfer.wait()
            columns = part if transfer.results is None else _join_columns(transfer.results, part, ring.kind)
            block = transfer.block or block
        transfer = _Transfer(ring, ring.world_size, block, columns)
        transfer.wait()
        assert transfer.results is not None
        column_loss, column_best = transfer.results[0], transfer.results[1:]
        row_stats = rows.stats(sum(ring.sizes))
        row_positive = row_stats[0] * scale.reshape(()) if ring.kind == "infonce" else torch.zeros_like(rows.loss)

        ctx.save_for_backward(
            audio, text, scale, bias, ids, rows.loss, row_stats, rows.positives, column_loss, column_best
        )
        ctx.ring = ring
        ctx.mark_non_differentiable(row_stats, column_best)
        return rows.loss, column_loss, row_positive, row_stats, column_best

    @staticmethod
    @functools.partial(once_differentiable, "contrastive_loss")
    def backward(
        ctx: Any, grad_row: Tensor, grad_column: Tensor, grad_positive: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        audio, text, scale, bias, ids, row_loss, row_stats, all_positives, column_loss, column_best = ctx.saved_tensors
        ring: _Ring = ctx.ring
        grad_audio = torch.zeros_like(audio, dtype=row_loss.dtype)
        grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(scale if bias is None else bias)
        columns = torch.cat([column_loss[None], column_best, grad_column[None]])
        block, grad_text = _Block(text, ids, columns), None
        for step in range(ring.world_size):
            transfer = _Transfer(ring, step, block, grad_text)
            assert block.columns is not None
            positives = ring.positives(audio.shape[0], ids, block, step)
            # The backend divides by the number of positives in the block.
            share = grad_positive * (positives / all_positives)
            inputs = BackwardInputs(
                row_loss, block.columns[0], row_stats, block.columns[1:3], grad_row, block.columns[3], share
            )
            call = ring.call(step, audio, block, scale, bias, ids)
            part_audio, part_text, part_scale, part_bias = ring.backend.backward(call, inputs)
            grad_audio += part_audio
            grad_scale += part_scale
            grad_bias += part_bias
            transfer.wait()
            grad_text = part_text.to(row_loss.dtype)
            if transfer.results is not None:
                grad_text += transfer.results
            block = transfer.block or block
        transfer = _Transfer(ring, ring.world_size, block, grad_text)
        transfer.wait()
        assert transfer.results is not None
        bias_gradient = None if bias is None else grad_bias
        return grad_audio.to(audio.dtype), transfer.results.to(text.dtype), grad_scale, bias_gradient, None, None


class _RowSums(NamedTuple):
    """Sums of each row over the blocks so far: `[R]` each."""

    loss: Tensor
    largest: Tensor
    is_right: Tensor
    positive_sum: Tensor
    negative_sum: Tensor
    positives: Tensor

    @classmethod
    def empty(cls, audio: Tensor, kind: str) -> _RowSums:
        """The sums over no block."""
        zeros = audio.new_zeros(audio.shape[0], dtype=accumulator(audio.dtype))
        nothing = torch.full_like(zeros, -torch.inf)
        return cls(nothing if kind == "infonce" else zeros, nothing, zeros, zeros, zeros, zeros.to(torch.int64))

    def joined(self, loss: Tensor, stats: Tensor, positives: Tensor, columns: int, kind: str) -> _RowSums:
        """The sums including one more block, from the backend's results for it."""
        positive, negative, is_right, largest = stats.unbind()
        # If a block's best positive does not exceed its negatives, the block's largest logit is that of a negative.
        ties = torch.minimum(self.is_right, is_right)
        right = torch.where(largest > self.largest, is_right, torch.where(largest < self.largest, self.is_right, ties))
        return _RowSums(
            _join_log_sums(self.largest, self.loss, largest, loss) if kind == "infonce" else self.loss + loss,
            torch.maximum(self.largest, largest),
            right,
            self.positive_sum + positive * positives,
            self.negative_sum + negative * (columns - positives),
            self.positives + positives,
        )

    def stats(self, columns: int) -> Tensor:
        """`[4, R]`, the `row_stats` of a backend, after all `columns`."""
        negatives = (columns - self.positives).clamp_min(1)
        positive, negative = self.positive_sum / self.positives, self.negative_sum / negatives
        return torch.stack([positive, negative, self.is_right, self.largest])


def _join_columns(others: Tensor, part: Tensor, kind: str) -> Tensor:
    """Combine the columns' sums over two sets of rows.

    `[3, C]` each: log-sum-exp minus the largest logit, largest logit of positives, largest logit of negatives.
    """
    best = torch.maximum(others[1:], part[1:])
    if kind != "infonce":
        return torch.cat([part[:1], best])
    log_sum = _join_log_sums(others[1:].amax(0), others[0], part[1:].amax(0), part[0])
    return torch.cat([log_sum[None], best])


def _join_log_sums(largest: Tensor, log_sum: Tensor, other_largest: Tensor, other_log_sum: Tensor) -> Tensor:
    """Combine two log-sum-exps, each minus its largest value; see `collectives.all_reduce_logsumexp`."""
    whole = torch.maximum(largest, other_largest)
    whole = whole.masked_fill(whole.isneginf(), 0.0)
    return torch.logaddexp(log_sum + (largest - whole), other_log_sum + (other_largest - whole))
