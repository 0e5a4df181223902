"""Whether tensors that are written in place share memory, with themselves or with each other."""

from __future__ import annotations

from torch import Tensor


def overlaps_itself(x: Tensor) -> bool:
    """Whether an expanded dimension shows one value several times."""
    return any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True))


def share_memory(x: Tensor, y: Tensor) -> bool:
    """Whether some value belongs to both `x` and `y`, tensors of as many dimensions in memory of one device.

    Exact for parts of one tensor, as queries and keys of one projection are; where strides differ, ranges of addresses
    decide.
    """
    if not x.numel() or not y.numel():
        return False
    distance = y.data_ptr() - x.data_ptr()  # bytes
    dims = []
    for size_x, size_y, stride_x, stride_y in zip(x.shape, y.shape, x.stride(), y.stride(), strict=True):
        if size_x == size_y == 1:
            continue
        if size_x > 1 and size_y > 1 and stride_x != stride_y:
            return -_bytes(y) < distance < _bytes(x)
        stride = (stride_x if size_x > 1 else stride_y) * x.itemsize
        dims.append((stride, 1 - size_y, size_x - 1))
    return _reaches(distance, sorted(dims, reverse=True))


def _bytes(x: Tensor) -> int:
    return (1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))) * x.itemsize


def _reaches(distance: int, dims: list[tuple[int, int, int]]) -> bool:
    """Whether a sum of whole multiples of strides, each between its bounds, gives `distance`; largest strides first."""
    if not dims:
        return distance == 0
    (stride, low, high), *rest = dims
    if stride == 0:
        return _reaches(distance, rest)
    nearest = distance // stride
    # What the smaller strides reach together is less than this one: no other multiple can be right.
    return any(low <= n <= high and _reaches(distance - n * stride, rest) for n in (nearest, nearest + 1))
