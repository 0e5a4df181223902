"""Collectives of the losses, and their gradients.

Gradient convention: gradients are those of the losses summed over ranks. So a rank that multiplies its share of a
global mean by `world_size(group)` gets the global gradient once gradients are averaged over ranks, as DDP does.

`group=None` is this process alone. Every rank of the group must make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(group: dist.ProcessGroup | None) -> int:
    """The number of ranks in `group`.

    Raises:
        ValueError: this process is not in `group`.
    """
    size = 1 if group is None else dist.get_world_size(group)
    if size < 1:
        raise ValueError("group does not contain this rank; pass a group that it belongs to")
    return size


def detached_all_reduce_sum(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The elementwise sum of `values` over ranks, in their dtype, without a gradient."""
    return _all_reduce(values.detach(), dist.ReduceOp.SUM, group)


def detached_all_reduce_max(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The elementwise maximum of `values` over ranks, without a gradient."""
    return _all_reduce(values.detach(), dist.ReduceOp.MAX, group)


def all_reduce_logsumexp(largest: Tensor, log_sum: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Combine log-sum-exps, each over one rank's part of a set, into those over the whole set.

    A log-sum-exp is the pair `largest`, `log_sum`, whose sum it is: at a logit scale of 100 their float32 sum has too
    few digits for its exponential. Differentiable by `log_sum`; `largest` is a constant.

    Args:
        largest: float32 or float64, the same shape on all ranks; -inf where a rank's part is empty.
        log_sum: the same.
        group: the ranks.

    Returns:
        The pair over the whole set, the same on every rank.
    """
    if world_size(group) == 1:
        return largest.detach(), log_sum
    largest = largest.detach()
    whole = detached_all_reduce_max(largest, group)
    # If all parts are empty, -inf - -inf would be NaN.
    shift = largest - whole.masked_fill(whole.isneginf(), 0.0)
    return whole, _LogSumExp.apply(log_sum, shift, group)


def all_gather_sizes(size: int, device: torch.device, group: dist.ProcessGroup | None) -> list[int]:
    """`size` of every rank, in rank order, on the host.

    Uses gloo if the group has it (`init_process_group()` without a backend name gives NCCL and gloo); with NCCL alone
    it costs one device synchronization.
    """
    if world_size(group) == 1:
        return [size]
    if "gloo" in dist.get_backend_config(group):
        device = torch.device("cpu")
    sizes = torch.empty(world_size(group), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(sizes, torch.tensor([size], dtype=torch.int64, device=device), group=group)
    return sizes.tolist()


def all_gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Concatenate `[sizes[rank], ...]` of all ranks along the first dimension. Differentiable.

    The backward sums gradients over ranks, in float32 at least.
    """
    if world_size(group) == 1:
        return rows
    return _GatherRows.apply(rows, tuple(sizes), group)


def start_ring_shift(
    outgoing: Sequence[Tensor], incoming: Sequence[Tensor], group: dist.ProcessGroup
) -> Callable[[], None]:
    """Start to send tensors to the previous rank, and to receive those of the next rank, in a ring of all ranks.

    Args:
        outgoing: contiguous; must not change before the transfer ends. Empty tensors are not sent.
        incoming: memory for the tensors of the next rank, in its order, shapes and dtypes.
        group: the ranks.

    Returns:
        A function that waits for the transfer; on a GPU the stream waits, not the host.
    """
    size, rank = world_size(group), dist.get_rank(group)
    previous, following = (dist.get_global_rank(group, (rank + step) % size) for step in (-1, 1))
    transfers = [
        *(dist.P2POp(dist.isend, tensor, previous, group) for tensor in outgoing if tensor.numel()),
        *(dist.P2POp(dist.irecv, tensor, following, group) for tensor in incoming if tensor.numel()),
    ]
    works = dist.batch_isend_irecv(transfers) if transfers else []

    def wait() -> None:
        for work in works:
            work.wait()

    return wait


def _all_reduce(values: Tensor, operation: Any, group: dist.ProcessGroup | None) -> Tensor:
    if world_size(group) == 1:
        return values
    reduced = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, operation, group=group)
    return reduced


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_sum: Tensor, shift: Tensor, group: dist.ProcessGroup) -> Tensor:
        part = (shift + log_sum).exp()
        whole = _all_reduce(part, dist.ReduceOp.SUM, group)
        ctx.save_for_backward(part, whole)
        ctx.group = group
        return whole.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        part, whole = ctx.saved_tensors
        share = part / whole.masked_fill(whole == 0.0, 1.0)
        return _all_reduce(grad, dist.ReduceOp.SUM, ctx.group) * share, None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        gathered = rows.new_empty(len(sizes) * max(sizes), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, padded, group=group)
        if min(sizes) == max(sizes):
            return gathered
        return torch.cat([part[:size] for part, size in zip(gathered.chunk(len(sizes)), sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        sizes, rank = ctx.sizes, dist.get_rank(ctx.group)
        precise = grad.to(torch.promote_types(grad.dtype, torch.float32))
        nccl = grad.is_cuda and "nccl" in dist.get_backend_config(ctx.group)
        if nccl and min(sizes) == max(sizes):
            own = precise.new_empty(sizes[rank], *grad.shape[1:])
            dist.reduce_scatter_tensor(own, precise.contiguous(), group=ctx.group)
        else:
            offset = sum(sizes[:rank])
            own = _all_reduce(precise, dist.ReduceOp.SUM, ctx.group)[offset : offset + sizes[rank]]
        return own.to(grad.dtype), None, None
