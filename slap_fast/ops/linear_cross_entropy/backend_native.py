"""Native backend, CPU: matrix products by chunks of tokens, then native passes over cached logits."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import score_chunks
from slap_fast.ops.linear_cross_entropy.call import LinearCrossEntropyCall
from slap_fast.ops.loss_gradients import empty_gradient
from slap_fast.ops.matrix_product import matrix_product
from slap_fast.ops.score_chunks import chunk_rows, empty_scores, gradients_in
from slap_fast.ops.tensor_checks import STORAGE

# Bytes of a chunk of float32 inputs, twice those of 16-bit inputs. A chunk reads and writes the whole
# gradient of the vocabulary: few tokens at a time would be all memory traffic.
_BUDGET = 1 << 27


unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve `dtype` matrices on `device`; None if it can."""
    return score_chunks.rejects(device, dtype)


def loss_and_gradients(call: LinearCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.loss_and_gradients`."""
    hidden, weight, target = call.hidden, call.weight, call.target
    grad_hidden = empty_gradient(hidden, call.hidden_needs_grad).zero_()
    grad_weight = empty_gradient(weight, call.weight_needs_grad).zero_()
    dtype = score_chunks.product_dtype(hidden.dtype)
    precise_weight, vocabulary = weight.to(dtype), weight.shape[0]
    # The features of an ignored token may be anything, NaN included.
    counted = (target != call.ignore_index).nonzero().squeeze(1)
    floats = vocabulary + 2 * weight.shape[1]  # a row of logits, of features and of their gradient
    rows = chunk_rows(counted.shape[0], floats, _BUDGET * dtype.itemsize // 4)
    logits = empty_scores(rows, vocabulary)
    grad_logits = gradients_in(logits, dtype)
    total = 0.0
    for tokens in counted.split(rows):
        chunk, chunk_target = hidden[tokens].to(dtype), target[tokens]
        chunk_grad = grad_logits[: len(tokens)]
        matrix_product(chunk, precise_weight.T, logits[: len(tokens)])
        total += native.require().linear_cross_entropy(
            logits=logits.data_ptr(),
            rows=len(tokens),
            columns=vocabulary,
            stride=logits.stride(0),
            target=chunk_target.data_ptr(),
            label_smoothing=call.label_smoothing,
            z_loss=call.z_loss,
            grad_dtype=STORAGE[dtype] if call.needs_grad else None,
            threads=torch.get_num_threads(),
        )
        if call.hidden_needs_grad:
            grad_hidden[tokens] = matrix_product(
                chunk_grad, precise_weight, torch.empty(chunk.shape, dtype=torch.float32, device="cpu")
            )
        if call.weight_needs_grad:
            matrix_product(chunk_grad.T, chunk, grad_weight, accumulate=True)
    return torch.tensor(total, dtype=torch.float32, device="cpu"), grad_hidden, grad_weight
