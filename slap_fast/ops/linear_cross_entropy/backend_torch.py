"""PyTorch backend, any device: logits and gradients of one chunk of tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.linear_cross_entropy.call import LinearCrossEntropyCall
from slap_fast.ops.loss_gradients import empty_gradient
from slap_fast.ops.tensor_checks import accumulator

# Elements of the logits held at once: 16 MiB in float32, small enough for the allocator to reuse between chunks.
_MAX_LOGITS = 1 << 22


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def loss_and_gradients(call: LinearCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.loss_and_gradients`."""
    hidden, weight, target = call.hidden, call.weight, call.target
    label_smoothing, z_loss = call.label_smoothing, call.z_loss
    vocabulary = weight.shape[0]
    grad_hidden = empty_gradient(hidden, call.hidden_needs_grad)
    grad_weight = empty_gradient(weight, call.weight_needs_grad).zero_()
    precise_weight = weight.to(accumulator(hidden.dtype))
    total = precise_weight.new_zeros(())
    chunk_size = max(1, _MAX_LOGITS // vocabulary)
    for begin in range(0, hidden.shape[0], chunk_size):
        rows = slice(begin, begin + chunk_size)
        chunk, chunk_target = hidden[rows].to(precise_weight.dtype), target[rows]
        ignored = chunk_target == call.ignore_index
        invalid = ~ignored & ((chunk_target < 0) | (chunk_target >= vocabulary))
        index = chunk_target.masked_fill(ignored | invalid, 0).unsqueeze(1)  # [c, 1]
        logits = chunk @ precise_weight.T  # [c, V]
        lse = logits.logsumexp(1)
        expected = logits.gather(1, index).squeeze(1)
        if label_smoothing:
            expected = torch.lerp(expected, logits.mean(1), label_smoothing)
        losses = lse - expected
        if z_loss:
            losses += z_loss * lse.square()
        total += losses.masked_fill(invalid, torch.nan).masked_fill(ignored, 0.0).sum()
        if not call.needs_grad:
            continue
        # Not exp(logits - lse): where logits are large, a rounded lse has lost digits that matter.
        grad_logits = logits.softmax(1)
        if z_loss:
            grad_logits *= 1 + 2 * z_loss * lse[:, None]
        if label_smoothing:
            grad_logits -= label_smoothing / vocabulary
        grad_logits.scatter_add_(1, index, grad_logits.new_full(index.shape, label_smoothing - 1))
        grad_logits.masked_fill_(invalid[:, None], torch.nan).masked_fill_(ignored[:, None], 0.0)
        if call.hidden_needs_grad:
            torch.mm(grad_logits, precise_weight, out=grad_hidden[rows])
        if call.weight_needs_grad:
            # The features of an ignored token may be anything, NaN included.
            grad_weight.addmm_(grad_logits.T, chunk.masked_fill(ignored[:, None], 0.0))
    return total, grad_hidden, grad_weight
