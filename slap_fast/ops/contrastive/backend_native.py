"""The contrastive sums by the native module: float32 and 16-bit floats in CPU memory, on all of torch's threads.

Logits are made by tiles that stay in a core's cache, and kept for the products of the backward a few thousand rows and
columns at a time: beside gradients of 16-bit texts, which are summed in float32, some tens of MiB whatever the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.tensor_checks import STORAGE, aligned, contiguous

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve embeddings of `dtype` on `device`, None if it can."""
    if device.type != "cpu":
        return f"the tensors are on {device}; native code reads CPU memory"
    if dtype not in STORAGE:
        return f"the tensors are {dtype}; native code takes float32, bfloat16 and float16"
    return None


def _readable(x: Tensor) -> Tensor:
    return aligned(x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous())


def _inputs(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
) -> Any:
    ids = (0, 0)
    if audio_ids is not None and text_ids is not None and audio.shape[0] and text.shape[0]:
        ids = (audio_ids.data_ptr(), text_ids.data_ptr())  # of no rows or columns there is no address, nor a pair
    return native.require().ContrastiveInputs(
        element=STORAGE[audio.dtype],
        rows=audio.shape[0],
        columns=text.shape[0],
        width=audio.shape[1],
        audio=(audio.data_ptr(), audio.stride(0)),
        text=(text.data_ptr(), text.stride(0)),
        scale=logit_scale.item(),
        bias=0.0 if logit_bias is None else logit_bias.item(),
        sigmoid=kind == "sigmoid",
        offset=offset,
        audio_ids=ids[0],
        text_ids=ids[1],
        rows_at_once=chunk_size,
    )


def forward(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    audio, text = _readable(audio), _readable(text)
    audio_ids, text_ids = (None if ids is None else contiguous(ids) for ids in (audio_ids, text_ids))
    rows, columns = audio.shape[0], text.shape[0]
    row_loss, column_loss, row_positive, row_facts, column_best = (
        torch.empty(shape, dtype=torch.float32, device="cpu")
        for shape in ((rows,), (columns,), (rows,), (4, rows), (2, columns))
    )
    native.require().contrastive_sums(
        _inputs(audio, text, logit_scale, logit_bias, audio_ids, text_ids, offset, kind, chunk_size),
        row_loss=row_loss.data_ptr(),
        column_loss=column_loss.data_ptr(),
        row_positive=row_positive.data_ptr(),
        row_facts=row_facts.data_ptr(),
        column_best=column_best.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return row_loss, column_loss, row_positive, row_facts, column_best


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    audio, text = _readable(audio), _readable(text)
    audio_ids, text_ids = (None if ids is None else contiguous(ids) for ids in (audio_ids, text_ids))
    vectors = {
        "grad_row": contiguous(grad_row),
        "grad_column": contiguous(grad_column),
        "grad_positive": contiguous(grad_positive),
        "row_loss": contiguous(row_loss),
        "column_loss": contiguous(column_loss),
        "row_largest": contiguous(row_facts[3]),
        "column_largest": column_best.amax(0),
    }
    grad_audio, grad_text = (torch.empty(x.shape, dtype=x.dtype, device="cpu") for x in (audio, text))
    grad_scale, grad_bias = native.require().contrastive_sums_backward(
        _inputs(audio, text, logit_scale, logit_bias, audio_ids, text_ids, offset, kind, chunk_size),
        **{name: vector.data_ptr() for name, vector in vectors.items()},
        grad_audio=grad_audio.data_ptr(),
        grad_text=grad_text.data_ptr(),
        threads=torch.get_num_threads(),
    )
    bias_like = logit_scale if logit_bias is None else logit_bias
    return (
        grad_audio,
        grad_text,
        torch.full_like(logit_scale, grad_scale, memory_format=torch.contiguous_format),
        torch.full_like(bias_like, grad_bias, memory_format=torch.contiguous_format),
    )
