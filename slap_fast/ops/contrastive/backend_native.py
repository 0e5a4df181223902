"""Native backend, CPU: logits in tiles that fit a core's cache, on all of PyTorch's threads.

The backward keeps the logits of a few thousand rows and columns at a time for its matrix products. Memory is some tens
of MiB for any batch, plus the gradients of 16-bit texts, which are summed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import score_chunks
from slap_fast.ops.contrastive.call import BackwardInputs, ContrastiveCall, Sums
from slap_fast.ops.tensor_checks import STORAGE, aligned, contiguous

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve embeddings of `dtype` on `device`; None if it can."""
    return score_chunks.rejects(device, dtype)


def forward(call: ContrastiveCall) -> Sums:
    """See `Backend.forward`."""
    call, rows, columns = _readable(call), call.audio.shape[0], call.text.shape[0]
    row_loss, column_loss, row_positive, row_stats, column_best = (
        torch.empty(shape, dtype=torch.float32, device="cpu")
        for shape in ((rows,), (columns,), (rows,), (4, rows), (2, columns))
    )
    native.require().contrastive_sums(
        _inputs(call),
        row_loss=row_loss.data_ptr(),
        column_loss=column_loss.data_ptr(),
        row_positive=row_positive.data_ptr(),
        row_stats=row_stats.data_ptr(),
        column_best=column_best.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return row_loss, column_loss, row_positive, row_stats, column_best


def backward(call: ContrastiveCall, inputs: BackwardInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    call = _readable(call)
    vectors = {
        "grad_row": contiguous(inputs.grad_row),
        "grad_column": contiguous(inputs.grad_column),
        "grad_positive": contiguous(inputs.grad_positive),
        "row_loss": contiguous(inputs.row_loss),
        "column_loss": contiguous(inputs.column_loss),
        "row_max": contiguous(inputs.row_stats[3]),
        "column_max": inputs.column_best.amax(0),
    }
    grad_audio, grad_text = (torch.empty(x.shape, dtype=x.dtype, device="cpu") for x in (call.audio, call.text))
    grad_scale, grad_bias = native.require().contrastive_sums_backward(
        _inputs(call),
        **{name: vector.data_ptr() for name, vector in vectors.items()},
        grad_audio=grad_audio.data_ptr(),
        grad_text=grad_text.data_ptr(),
        threads=torch.get_num_threads(),
    )
    bias_like = call.logit_scale if call.logit_bias is None else call.logit_bias
    return (
        grad_audio,
        grad_text,
        torch.full_like(call.logit_scale, grad_scale, memory_format=torch.contiguous_format),
        torch.full_like(bias_like, grad_bias, memory_format=torch.contiguous_format),
    )


def _readable(call: ContrastiveCall) -> ContrastiveCall:
    """The call in memory that native code can read."""
    audio, text = (aligned(x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()) for x in call[:2])
    if call.audio_ids is None or call.text_ids is None:
        return call._replace(audio=audio, text=text)
    return call._replace(
        audio=audio, text=text, audio_ids=contiguous(call.audio_ids), text_ids=contiguous(call.text_ids)
    )


def _inputs(call: ContrastiveCall) -> Any:
    """The native struct, which holds addresses: the call's tensors must outlive it."""
    audio, text, ids = call.audio, call.text, (0, 0)
    # An empty tensor has no address.
    if call.audio_ids is not None and call.text_ids is not None and audio.shape[0] and text.shape[0]:
        ids = (call.audio_ids.data_ptr(), call.text_ids.data_ptr())
    return native.require().ContrastiveInputs(
        dtype=STORAGE[audio.dtype],
        rows=audio.shape[0],
        columns=text.shape[0],
        width=audio.shape[1],
        audio=(audio.data_ptr(), audio.stride(0)),
        text=(text.data_ptr(), text.stride(0)),
        scale=call.logit_scale.item(),
        bias=0.0 if call.logit_bias is None else call.logit_bias.item(),
        sigmoid=call.kind == "sigmoid",
        offset=call.offset,
        audio_ids=ids[0],
        text_ids=ids[1],
        chunk_size=call.chunk_size,
    )
