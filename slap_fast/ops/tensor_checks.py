"""Checks and conversions of tensors before a kernel reads their memory: shape, dtype, strides, alignment, overlap.

No function here reads values, so none waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Dtypes that native code reads, and its names for them.
STORAGE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Dtype of sums over `dtype` values: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def require(name: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError unless `x` has that shape, dtype and device."""
    if x.dtype != dtype or tuple(x.shape) != tuple(shape) or x.device != device:
        raise ValueError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)} on {x.device}; pass {dtype} of shape {tuple(shape)} on "
            f"{device}"
        )


def require_like(name: str, x: Tensor, other: Tensor) -> None:
    """Raise ValueError unless `x` has the shape, dtype and device of `other`."""
    require(name, x, other.shape, other.dtype, other.device)


def aligned(x: Tensor) -> Tensor:
    """`x` if each element's address is a multiple of its size, else a copy: a view of bytes may start anywhere."""
    return x if x.data_ptr() % x.itemsize == 0 else x.clone()


def contiguous(x: Tensor) -> Tensor:
    """`x` if it is contiguous and aligned, else a copy."""
    return aligned(x.contiguous())


def unit_last_stride(x: Tensor) -> Tensor:
    """`x` if the stride of its last dimension is 1, else a copy: gradients may be expanded."""
    return x if x.stride(-1) == 1 else x.contiguous()


def matrix(x: Tensor) -> Tensor:
    """`x` if a kernel can read it by rows, else a copy: unit last stride, and 128 rows within 2**31 elements."""
    return x if x.stride(1) == 1 and x.stride(0) < 1 << 24 else x.contiguous()


def overlaps_itself(x: Tensor) -> bool:
    """Whether an expanded dimension maps several elements to one address."""
    return any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True))


def share_memory(x: Tensor, y: Tensor) -> bool:
    """Whether `x` and `y`, of equally many dimensions and on one device, have an element in common.

    Exact for views of one tensor, such as the queries and keys of one projection. Where strides differ, overlapping
    address ranges count as shared.
    """
    if not x.numel() or not y.numel():
        return False
    distance = y.data_ptr() - x.data_ptr()  # bytes
    dims = []
    for size_x, size_y, stride_x, stride_y in zip(x.shape, y.shape, x.stride(), y.stride(), strict=True):
        if size_x == size_y == 1:
            continue
        if size_x > 1 and size_y > 1 and stride_x != stride_y:
            return -_span(y) < distance < _span(x)
        stride = (stride_x if size_x > 1 else stride_y) * x.itemsize
        dims.append((stride, 1 - size_y, size_x - 1))
    return _reaches(distance, sorted(dims, reverse=True))


def _span(x: Tensor) -> int:
    """Bytes from the first element of `x` to the end of the last."""
    return (1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))) * x.itemsize


def _reaches(distance: int, dims: list[tuple[int, int, int]]) -> bool:
    """Whether `distance` is a sum of one multiple of each stride, within its bounds.

    Args:
        distance: bytes.
        dims: `(stride, lowest multiple, highest multiple)`, largest stride first.
    """
    if not dims:
        return distance == 0
    (stride, low, high), *rest = dims
    if stride == 0:
        return _reaches(distance, rest)
    nearest = distance // stride
    # The smaller strides together reach less than this one: no other multiple can be right.
    return any(low <= n <= high and _reaches(distance - n * stride, rest) for n in (nearest, nearest + 1))
