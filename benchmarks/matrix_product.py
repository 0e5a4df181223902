"""The machine's peak rate: one square matrix product, by which the rates of other cases are divided."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings
from benchmarks.harness.inputs import normal

USEFUL = "useful GFLOP"
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def product_name(dtype: torch.dtype) -> str:
    """Name of the case, which other cases pass as their `peak`."""
    return f"matrix product, {DTYPE_NAMES[dtype]}"


def product_case(dtype: torch.dtype, settings: Settings, unit: str = USEFUL) -> Case:
    size = 64 if settings.quick else 2048 if settings.device == "cpu" else 8192

    def factors() -> list[Tensor]:
        return [normal(seed, size, size, device=settings.device, dtype=dtype) for seed in range(2)]

    def setup() -> Run:
        a, b = factors()
        return Run(step=lambda: a @ b, outputs=lambda: {"product": a @ b})

    def reference() -> Outputs:
        a, b = (x.double() for x in factors())
        return {"product": a @ b}

    return Case(
        name=product_name(dtype),
        peers=(Peer("torch.matmul", setup),),
        baseline="torch.matmul",
        reference=reference,
        tolerance=_TOLERANCES[dtype],
        work={unit: 2.0 * size**3 / 1e9},
        peak=product_name(dtype),
    )
