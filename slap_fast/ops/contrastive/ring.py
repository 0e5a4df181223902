"""The sums of `contrastive_loss` with the text on its way round the ranks: memory that does not grow with their number.

Each rank keeps its audio rows. The blocks of text, one a rank, move one rank on after each step, so that after as many
steps as there are ranks every row has met every column. While a block is worked on the next one arrives. What a block's
columns have summed so far follows it a step behind, also while products run, and is whole when it comes home; so is, in
the backward pass, the gradient of its text. A rank holds two blocks of text and, in the backward, three of gradients.
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
from slap_fast.ops.contrastive.call import ContrastiveBackend
from slap_fast.ops.custom_op import once_differentiable
from slap_fast.ops.tensor_checks import accumulator


def ring_sums(
    backend: ContrastiveBackend,
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    ids: Tensor | None,
    *,
    sizes: Sequence[int],
    kind: str,
    chunk_size: int,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `ContrastiveBackend.forward` returns of this rank's rows against the columns of all ranks, and of this
    rank's columns against the rows of all ranks: `[R]`, `[R]`, `[R]`, `[4, R]`, `[2, R]`.

    The first three are differentiable, by the convention of `collectives`: the gradients are those of the losses of all
    ranks summed. Sums over blocks are in the accumulator's dtype; a block's own gradients are first rounded to that of
    the embeddings.

    Args:
        sizes: clips of each rank, in rank order.
    """
    dtype = accumulator(audio.dtype)
    ring = _Ring(backend, kind, chunk_size, tuple(sizes), dist.get_rank(group), group)
    bias = None if logit_bias is None else logit_bias.to(dtype)
    ids = None if ids is None else ids.contiguous()
    return _RingSums.apply(audio, text.contiguous(), logit_scale.to(dtype), bias, ids, ring)


@dataclass(frozen=True)
class _Ring:
    backend: ContrastiveBackend
    kind: str
    chunk_size: int
    sizes: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup

    @property
    def world_size(self) -> int:
        return len(self.sizes)

    def owner(self, step: int) -> int:
        """Whose block is here in a step."""
        return (self.rank + step) % self.world_size

    def offset(self, step: int) -> int:
        """The column, in the block that is here, of the first row's own text: outside of it but in step 0."""
        return sum(self.sizes[: self.rank]) - sum(self.sizes[: self.owner(step)])

    def positives(self, rows: int, ids: Tensor | None, block: _Block, step: int) -> Tensor:
        """`[rows]`: how many of the block's columns are positives of each row."""
        if ids is None or block.ids is None:
            return torch.full((rows,), int(step == 0), device=block.text.device)
        ordered = block.ids.sort().values
        return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


class _Block(NamedTuple):
    """What travels in front: as it left its owner."""

    text: Tensor  # [C, D]
    ids: Tensor | None  # [C]
    columns: Tensor | None  # [4, C] in the backward: log-sum, best positive and negative, gradient of the log-sum

    def empty(self, size: int) -> _Block:
        """Where one of `size` columns can arrive."""
        ids = None if self.ids is None else self.ids.new_empty(size)
        columns = None if self.columns is None else self.columns.new_empty(4, size)
        return _Block(self.text.new_empty(size, self.text.shape[1]), ids, columns)

    def tensors(self) -> list[Tensor]:
        return [x for x in self if x is not None]


class _Passage:
    """One step's transfers: the block at hand and what came of the one before go to the previous rank; the next block
    and what others made of the one at hand come from the next rank. They run until `wait`."""

    def __init__(self, ring: _Ring, step: int, block: _Block, done: Tensor | None) -> None:
        """`done` has its columns last in the forward, `[3, C]`, and first in the backward, `[C, D]`."""
        size = ring.sizes[ring.owner(step)]
        is_last = step + 1 >= ring.world_size
        self.block = None if is_last else block.empty(ring.sizes[ring.owner(step + 1)])
        self.done = None
        if done is not None:
            shape = (3, size) if block.columns is None else (size, block.text.shape[1])
            self.done = done.new_empty(shape)
        self.wait = collectives.pass_on(
            [*([] if is_last else block.tensors()), *([] if done is None else [done])],
            [*([] if self.block is None else self.block.tensors()), *([] if self.done is None else [self.done])],
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
    ) -> tuple[Tensor, ...]:
        rows = _Rows.before_any(audio, ring.kind)
        block, columns = _Block(text, ids, None), None
        for step in range(ring.world_size):
            passage = _Passage(ring, step, block, columns)
            row_loss, column_loss, _, row_facts, column_best = ring.backend.forward(
                audio, block.text, scale, bias, ids, block.ids, ring.offset(step), ring.kind, ring.chunk_size
            )
            positives = ring.positives(audio.shape[0], ids, block, step)
            rows = rows.joined(row_loss, row_facts, positives, block.text.shape[0], ring.kind)
            part = torch.cat([column_loss[None], column_best])
            passage.wait()
            columns = part if passage.done is None else _join_columns(passage.done, part, ring.kind)
            block = passage.block or block
        passage = _Passage(ring, ring.world_size, block, columns)
        passage.wait()
        assert passage.done is not None
        column_loss, column_best = passage.done[0], passage.done[1:]
        row_facts = rows.facts(sum(ring.sizes))
        row_positive = row_facts[0] * scale.reshape(()) if ring.kind == "infonce" else torch.zeros_like(rows.loss)

        ctx.save_for_backward(
            audio, text, scale, bias, ids, rows.loss, row_facts, rows.positives, column_loss, column_best
        )
        ctx.ring = ring
        ctx.mark_non_differentiable(row_facts, column_best)
        return rows.loss, column_loss, row_positive, row_facts, column_best

    @staticmethod
    @functools.partial(once_differentiable, "contrastive_loss")
    def backward(
        ctx: Any, grad_row: Tensor, grad_column: Tensor, grad_positive: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        audio, text, scale, bias, ids, row_loss, row_facts, all_positives, column_loss, column_best = ctx.saved_tensors
        ring: _Ring = ctx.ring
        grad_audio = torch.zeros_like(audio, dtype=row_loss.dtype)
        grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(scale if bias is None else bias)
        columns = torch.cat([column_loss[None], column_best, grad_column[None]])
        block, grad_text = _Block(text, ids, columns), None
        for step in range(ring.world_size):
            passage = _Passage(ring, step, block, grad_text)
            assert block.columns is not None
            positives = ring.positives(audio.shape[0], ids, block, step)
            # The backend divides by the positives in the block.
            share = grad_positive * (positives / all_positives)
            part_audio, part_text, part_scale, part_bias = ring.backend.backward(
                grad_row,
                block.columns[3],
                share,
                row_loss,
                block.columns[0],
                row_facts,
                block.columns[1:3],
                audio,
                block.text,
                scale,
                bias,
                ids,
                block.ids,
                ring.offset(step),
                ring.kind,
                ring.chunk_size,
            )
            grad_audio += part_audio
            grad_scale += part_scale
            grad_bias += part_bias
            passage.wait()
            grad_text = part_text.to(row_loss.dtype)
            if passage.done is not None:
                grad_text += passage.done
            block = passage.block or block
        passage = _Passage(ring, ring.world_size, block, grad_text)
        passage.wait()
        assert passage.done is not None
        bias_gradient = None if bias is None else grad_bias
        return grad_audio.to(audio.dtype), passage.done.to(text.dtype), grad_scale, bias_gradient, None, None


class _Rows(NamedTuple):
    """What is known of each row after some of the blocks: `[R]` each."""

    loss: Tensor
    largest: Tensor
    is_right: Tensor
    positive_sum: Tensor
    negative_sum: Tensor
    positives: Tensor

    @classmethod
    def before_any(cls, audio: Tensor, kind: str) -> _Rows:
        zeros = audio.new_zeros(audio.shape[0], dtype=accumulator(audio.dtype))
        nothing = torch.full_like(zeros, -torch.inf)
        return cls(nothing if kind == "infonce" else zeros, nothing, zeros, zeros, zeros, zeros.to(torch.int64))

    def joined(self, loss: Tensor, facts: Tensor, positives: Tensor, columns: int, kind: str) -> _Rows:
        """With a block more, by what the backend returned of it."""
        positive, negative, is_right, largest = facts.unbind()
        # Wherever a block's best positive is not above its negatives, its largest logit is that of a negative.
        ties = torch.minimum(self.is_right, is_right)
        right = torch.where(largest > self.largest, is_right, torch.where(largest < self.largest, self.is_right, ties))
        return _Rows(
            _join_log_sums(self.largest, self.loss, largest, loss) if kind == "infonce" else self.loss + loss,
            torch.maximum(self.largest, largest),
            right,
            self.positive_sum + positive * positives,
            self.negative_sum + negative * (columns - positives),
            self.positives + positives,
        )

    def facts(self, columns: int) -> Tensor:
        """`[4, R]`, as the backend's, once all `columns` were met."""
        negatives = (columns - self.positives).clamp_min(1)
        positive, negative = self.positive_sum / self.positives, self.negative_sum / negatives
        return torch.stack([positive, negative, self.is_right, self.largest])


def _join_columns(others: Tensor, part: Tensor, kind: str) -> Tensor:
    """`[3, C]` of two sets of rows: log-sum-exp less the largest logit, largest among positives, among negatives."""
    best = torch.maximum(others[1:], part[1:])
    if kind != "infonce":
        return torch.cat([part[:1], best])
    log_sum = _join_log_sums(others[1:].amax(0), others[0], part[1:].amax(0), part[0])
    return torch.cat([log_sum[None], best])


def _join_log_sums(largest: Tensor, log_sum: Tensor, other_largest: Tensor, other_log_sum: Tensor) -> Tensor:
    """The log-sum-exp of both sets less the larger of their largest; see `collectives.logsumexp_over_ranks`."""
    whole = torch.maximum(largest, other_largest)
    whole = whole.masked_fill(whole.isneginf(), 0.0)
    return torch.logaddexp(log_sum + (largest - whole), other_log_sum + (other_largest - whole))
