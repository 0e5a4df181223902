"""Triton kernels for the gate of SwiGLU, `silu(gate) * up`: one launch forward, one backward.

Memory-bound: per value, forward reads two and writes one, backward reads three and writes two. For 65,536 tokens of
width 3,072 in bfloat16 that is 1.2 GB and 2.0 GB: 250 and 420 us at the 4.8 TB/s of an H200.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch

# Values of a program of 4 warps: 16 per thread and tensor, two vectors of 16 bytes in 16-bit types.
_VALUES = 2048
# One warp reads a row of a tile with one vector per thread, and few tiles reach beyond the width.
_COLUMNS = 256


@triton.jit
def _tile(
    rows: tl.tensor, WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Rows `[BLOCK_R, 1]` int64, columns `[1, BLOCK_W]` and mask of a program. Programs go along rows of tiles."""
    tiles: tl.constexpr = (WIDTH + BLOCK_W - 1) // BLOCK_W
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = program % tiles * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    return row, column, (row < rows) & (column < WIDTH)


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    gate_up: tl.tensor,
    out: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    row, column, mask = _tile(rows, WIDTH, BLOCK_R, BLOCK_W)
    source = gate_up + row * stride + column  # [BLOCK_R, BLOCK_W]
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    grad: tl.tensor,
    gate_up: tl.tensor,
    grad_gate_up: tl.tensor,
    stride_g: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    row, column, mask = _tile(rows, WIDTH, BLOCK_R, BLOCK_W)
    source = gate_up + row * stride + column  # [BLOCK_R, BLOCK_W]
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=mask, other=0.0).to(tl.float32)
    slope = tl.load(grad + row * stride_g + column, mask=mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    grad_gate = slope * up * (sigmoid * (1.0 + gate * (1.0 - sigmoid)))
    target = grad_gate_up + row * (2 * WIDTH) + column
    tl.store(target, grad_gate.to(grad_gate_up.dtype.element_ty), mask=mask)
    tl.store(target + WIDTH, (slope * (gate * sigmoid)).to(grad_gate_up.dtype.element_ty), mask=mask)


def _launch(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    columns = min(triton.next_power_of_2(width), _COLUMNS)
    block = {"WIDTH": width, "BLOCK_R": _VALUES // columns, "BLOCK_W": columns}
    return (triton.cdiv(rows, block["BLOCK_R"]) * triton.cdiv(width, columns),), block


def forward(gate_up: Tensor, out: Tensor) -> None:
    """Write `[R, M]` to contiguous `out`, from `gate_up` `[R, 2 * M]` with a last stride of 1."""
    rows, width = out.shape
    if out.numel() == 0:
        return
    grid, block = _launch(rows, width)
    with launch.on_device_of(gate_up):
        forward_kernel[grid](gate_up, out, gate_up.stride(0), rows, **block)


def backward(grad: Tensor, gate_up: Tensor, grad_gate_up: Tensor) -> None:
    """Write the gradient of `gate_up` to contiguous `grad_gate_up`. The last stride of the others is 1."""
    rows, width = grad.shape
    if grad.numel() == 0:
        return
    grid, block = _launch(rows, width)
    with launch.on_device_of(gate_up):
        backward_kernel[grid](grad, gate_up, grad_gate_up, grad.stride(0), gate_up.stride(0), rows, **block)
