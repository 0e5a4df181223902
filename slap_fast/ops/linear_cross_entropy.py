"""Cross-entropy of a vocabulary projection, without its logits: what a caption decoder ends in.

The `[T, V]` logits exist one chunk of tokens at a time and are recomputed in the backward. Definitions: PyTorch's
`cross_entropy` for `ignore_index` and `label_smoothing`; PaLM (arXiv 2204.02311, section 5) for the z-loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slap_fast.ops import dispatch

# Elements of the logits held at once: 16 MiB in float32, small enough for the allocator to reuse between chunks.
_MAX_LOGITS = 1 << 22


@torch.library.custom_op("slap_fast::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The loss summed over tokens, scalar, and the `[T]` log-sum-exp of each token's logits."""
    return _forward_torch(
        hidden, weight, target, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss
    )


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = _accumulator(hidden.dtype)
    return hidden.new_empty((), dtype=dtype), hidden.new_empty(hidden.shape[0], dtype=dtype)


@torch.library.custom_op("slap_fast::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(
    grad: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _backward_torch(
        grad, lse, hidden, weight, target, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss
    )


@_linear_cross_entropy_backward.register_fake
def _(
    grad: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


dispatch.register("linear_cross_entropy", [dispatch.Backend(name="torch")])


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Tile(NamedTuple):
    rows: slice
    hidden: Tensor  # [c, D]
    logits: Tensor  # [c, V]
    target: Tensor  # [c, 1], 0 where ignored
    ignored: Tensor  # [c] bool
    invalid: Tensor  # [c] bool: neither ignored nor in the vocabulary


def _tiles(hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int) -> Iterator[_Tile]:
    """The logits by chunks of tokens, in the dtype of `weight`."""
    vocabulary = weight.shape[0]
    chunk_size = max(1, _MAX_LOGITS // vocabulary)
    for begin in range(0, hidden.shape[0], chunk_size):
        rows = slice(begin, begin + chunk_size)
        chunk, chunk_target = hidden[rows].to(weight.dtype), target[rows]
        ignored = chunk_target == ignore_index
        invalid = ~ignored & ((chunk_target < 0) | (chunk_target >= vocabulary))
        index = chunk_target.masked_fill(ignored | invalid, 0).unsqueeze(1)
        yield _Tile(rows, chunk, chunk @ weight.T, index, ignored, invalid)


def _forward_torch(
    hidden: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    dtype = _accumulator(hidden.dtype)
    total, lse = hidden.new_zeros((), dtype=dtype), hidden.new_empty(hidden.shape[0], dtype=dtype)
    for tile in _tiles(hidden, weight.to(dtype), target, ignore_index):
        chunk_lse = tile.logits.logsumexp(1)
        lse[tile.rows] = chunk_lse
        expected = tile.logits.gather(1, tile.target).squeeze(1)
        if label_smoothing:
            expected = torch.lerp(expected, tile.logits.mean(1), label_smoothing)
        losses = chunk_lse - expected
        if z_loss:
            losses += z_loss * chunk_lse.square()
        total += losses.masked_fill(tile.invalid, torch.nan).masked_fill(tile.ignored, 0.0).sum()
    return total, lse


def _backward_torch(
    grad: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    dtype = lse.dtype
    precise_weight = weight.to(dtype)
    grad_hidden = hidden.new_empty(hidden.shape)
    grad_weight = torch.zeros_like(precise_weight, memory_format=torch.contiguous_format)
    for tile in _tiles(hidden, precise_weight, target, ignore_index):
        # Not exp(logits - lse): where logits are large, a rounded lse has lost digits that matter.
        grad_logits = tile.logits.softmax(1)
        if z_loss:
            grad_logits *= 1 + 2 * z_loss * lse[tile.rows, None]
        if label_smoothing:
            grad_logits -= label_smoothing / weight.shape[0]
        grad_logits.scatter_add_(1, tile.target, grad_logits.new_full(tile.target.shape, label_smoothing - 1))
        grad_logits *= grad
        grad_logits.masked_fill_(tile.invalid[:, None], torch.nan).masked_fill_(tile.ignored[:, None], 0.0)
        grad_hidden[tile.rows] = (grad_logits @ precise_weight).to(hidden.dtype)
        # An ignored token's features may be anything, NaN too.
        grad_weight.addmm_(grad_logits.T, tile.hidden.masked_fill(tile.ignored[:, None], 0.0))
    return grad_hidden, grad_weight.to(weight.dtype)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, target, *settings = inputs
    ctx.save_for_backward(output[1], hidden, weight, target)
    ctx.settings = settings


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _linear_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * 5


_linear_cross_entropy.register_autograd(_backward, setup_context=_setup_context)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """`cross_entropy(hidden @ weight.T, target)` over a packed batch of T tokens and a vocabulary of V.

    Args:
        hidden: `[T, D]` float32, bfloat16, float16 or float64. Logits and sums are float32 (float64 for float64).
        weight: `[V, D]`, dtype and device of `hidden`.
        target: `[T]` int64, in [0, V) or `ignore_index`.
        ignore_index: target of the tokens that count neither in the sum nor in the mean.
        label_smoothing: share of the target spread evenly over the vocabulary, in [0, 1].
        z_loss: coefficient, at least 0, of each token's squared log-sum-exp.
        reduction: "mean" over the tokens that are not ignored, or "sum".
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        Scalar, float32 (float64 for float64). Where no token counts it is 0 with gradients of 0, not the NaN of
        PyTorch's mean: one empty rank must not poison the others.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, a backend that cannot serve, or on the CPU a
            target outside the vocabulary. On a GPU targets are not read back: such a token makes the loss NaN.
    """
    _validate(hidden, weight, target, ignore_index, label_smoothing, z_loss, reduction)
    chosen = dispatch.select("linear_cross_entropy", backend, device=hidden.device, dtype=hidden.dtype)
    total, _ = _linear_cross_entropy(hidden, weight, target, ignore_index, label_smoothing, z_loss, chosen)
    if reduction == "sum":
        return total
    return total / (target != ignore_index).sum().clamp_min(1)


def _validate(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"hidden, weight have shapes {tuple(hidden.shape)}, {tuple(weight.shape)}; pass [T, D] and [V, D], V > 0"
        )
    if hidden.dtype != weight.dtype or not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden, weight are {hidden.dtype}, {weight.dtype}; pass one floating-point dtype")
    if target.shape != hidden.shape[:1] or target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype} of shape {tuple(target.shape)}; pass [{hidden.shape[0]}] int64")
    if not hidden.device == weight.device == target.device:
        raise ValueError(
            f"hidden, weight, target are on {hidden.device}, {weight.device}, {target.device}; use one device"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1]")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss is {z_loss}; it must be at least 0")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; choose 'mean' or 'sum'")
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    invalid = ((target < 0) | (target >= weight.shape[0])) & (target != ignore_index)
    if invalid.any():
        token = int(invalid.nonzero()[0])
        raise ValueError(
            f"target[{token}] is {int(target[token])}; it must lie in [0, {weight.shape[0]}) or be ignore_index "
            f"({ignore_index})"
        )
