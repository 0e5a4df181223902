"""Chunks of scores for the native losses: their sizes, and memory in the layout of csrc/cpu/score_rows.h."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.tensor_checks import STORAGE

_ROW_MULTIPLE = 16
# Rows at a distance of a multiple of this many elements would compete for the same cache sets.
_CACHE_WAY = 1024


def chunk_rows(rows: int, floats: int, budget: int) -> int:
    """Rows of each of the equal chunks of `rows` rows, of `floats` floats each, within about `budget` bytes.

    At least 64: a smaller chunk would spend its time on reading the other matrix of its product.
    """
    limit = max(64, budget // (4 * floats))
    chunks = max(1, -(-rows // limit))
    return max(1, -(-rows // chunks))


def empty_scores(rows: int, columns: int) -> Tensor:
    """Uninitialized `[rows, columns]` float32; the stride is a multiple of a vector."""
    stride = -(-columns // _ROW_MULTIPLE) * _ROW_MULTIPLE
    if stride % _CACHE_WAY == 0:
        stride += _ROW_MULTIPLE
    return torch.empty(rows, stride, dtype=torch.float32, device="cpu")[:, :columns]


def gradients_in(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """View of `scores` as the gradients of `dtype` that native code writes over them."""
    stride = scores.stride(0) * scores.itemsize // dtype.itemsize
    whole = scores.as_strided((scores.shape[0], scores.stride(0)), scores.stride())
    return whole.view(dtype).as_strided(scores.shape, (stride, 1))


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which matrices of `dtype` are multiplied: the gradients of scores are too small for float16."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def rejects(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why native code cannot serve `dtype` matrices on `device`; None if it can."""
    if device.type != "cpu":
        return f"the tensors are on {device}; native code reads CPU memory"
    if dtype not in STORAGE:
        return f"the tensors are {dtype}; native code takes float32, bfloat16 and float16"
    return None
