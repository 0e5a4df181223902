"""Product of float32 rows and int8 weights on the CPU, for inference.

Weights are quantized once, symmetrically, with one scale for each output. Each row of x is quantized when it is used,
with a scale of its own: a row of the result depends on no other row. Sums are exact in 32 bits, so that the bits depend
neither on the number of threads nor on the instruction set.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.tensor_checks import aligned, contiguous

LARGEST = 127
"""Quantized magnitudes are at most this: -128 is left out, so that negation is exact."""

MAX_DEPTH = 1 << 16
"""Sums of more products could leave 32 bits; native code has the same bound."""


class Int8Weight(NamedTuple):
    """A `[N, K]` weight, quantized and laid out for a kernel of this machine.

    Attributes:
        panels: int8, in the order in which the kernel reads them.
        starts: int32, what a sum of each output begins with.
        scales: `[N]` float32, of one quantization step.
        kernel: name of the kernel.
        depth: K.
    """

    panels: Tensor
    starts: Tensor
    scales: Tensor
    kernel: str
    depth: int


def int8_kernel() -> str | None:
    """Name of the kernel that is used here, such as avx2 or avx512_vnni; None without the native module."""
    module = native.load()
    return None if module is None else module.int8_kernels()[0]


def pack_int8(weight: Tensor) -> Int8Weight:
    """Quantize a weight to the nearest of 127 steps on each side of zero, by output.

    Args:
        weight: `[N, K]` float32 on the CPU, finite.

    Raises:
        ValueError: another dtype, device or shape, a K above `MAX_DEPTH`, or values that are not finite.
    """
    if weight.dim() != 2 or weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ValueError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)} on {weight.device}; pass float32 [N, K] on the "
            "CPU"
        )
    weight = weight.detach()
    columns, depth = weight.shape
    if depth > MAX_DEPTH:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; int8 products take at most {MAX_DEPTH} inputs")
    largest = weight.abs().amax(dim=1) if depth else weight.new_zeros(columns)
    if not bool(largest.isfinite().all()):
        raise ValueError("weight is not finite; its training had diverged")
    scales = largest / LARGEST
    # Of a row of zeros, or of values so small that their step is 0, all steps are 0.
    steps = torch.where(scales == 0, torch.inf, scales)[:, None]
    quantized = (weight / steps).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    module, kernel = native.require(), int8_kernel()
    assert kernel is not None
    panel_bytes, starts_count = module.int8_sizes(kernel, columns, depth)
    panels = torch.empty(panel_bytes, dtype=torch.int8, device="cpu")
    starts = torch.empty(starts_count, dtype=torch.int32, device="cpu")
    module.int8_pack(kernel, quantized.data_ptr(), columns, depth, panels.data_ptr(), starts.data_ptr())
    return Int8Weight(panels, starts, scales, kernel, depth)


# torch.compiler.disable, but the import of the whole compiler, which takes seconds, waits for the first call.
@torch._disable_dynamo
def int8_product(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, without gradients.

    A row of x is rounded to the nearest of 127 steps on each side of zero; its largest magnitude is the last of them.
    A row whose largest magnitude is below 1e-30 counts as zeros; one with a NaN or an infinity becomes NaN.

    Args:
        x: `[..., K]` float32 on the CPU, any strides.
        weight: of `pack_int8`.
        bias: `[N]` float32 on the CPU; None: without.

    Returns:
        `[..., N]` float32, contiguous.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a weight that was packed for another machine.
    """
    columns = len(weight.scales)
    for name, tensor in (("x", x), ("scales", weight.scales), ("bias", bias)):
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; int8 weights take float32 on the CPU")
    if weight.panels.device.type != "cpu" or weight.starts.device.type != "cpu":
        raise ValueError(f"the weight is on {weight.panels.device}; int8 weights are for CPUs")
    if x.dim() == 0 or x.shape[-1] != weight.depth:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and the weight {weight.depth} inputs; pass [..., {weight.depth}]"
        )
    if bias is not None and bias.shape != (columns,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; pass [{columns}], one for each output")
    module = native.require()
    sizes = (weight.panels.numel(), weight.starts.numel())
    if sizes != tuple(module.int8_sizes(weight.kernel, columns, weight.depth)):
        raise ValueError(
            f"the panels have the sizes {sizes}, which {weight.kernel} does not lay out; pack the weight again"
        )
    rows = x.detach().flatten(0, -2) if x.dim() > 1 else x.detach()[None]
    rows = aligned(rows) if rows.stride(-1) == 1 or weight.depth < 2 else contiguous(rows)
    stride = rows.stride(0) if len(rows) > 1 else weight.depth
    bias = None if bias is None else contiguous(bias.detach())
    out = torch.empty(len(rows), columns, dtype=torch.float32, device="cpu")
    module.int8_product(
        kernel=weight.kernel,
        x=(rows.data_ptr(), stride),
        rows=len(rows),
        panels=weight.panels.data_ptr(),
        starts=weight.starts.data_ptr(),
        scales=weight.scales.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        columns=columns,
        depth=weight.depth,
        out=(out.data_ptr(), columns),
        threads=torch.get_num_threads(),
    )
    return out.view(*x.shape[:-1], columns)
