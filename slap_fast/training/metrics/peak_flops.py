"""Peak FLOP/s of the devices: the denominator of MFU."""

from __future__ import annotations

import re
import time

import torch
import torch.distributed as dist

from slap_fast.training.engine import Precision

# Dense TFLOP/s of the data sheets at boost clock: bf16 with float32 accumulation, and float32 without TF32. The first
# pattern found in the device name applies.
_GPUS: tuple[tuple[str, float, float], ...] = (
    ("GB200", 2500.0, 80.0),
    ("B200", 2250.0, 75.0),
    ("GH200", 989.0, 67.0),
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100 NVL", 835.0, 60.0),
    ("H100", 989.0, 67.0),
    ("H800", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("A800", 312.0, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165.0, 10.3),
    ("A10G", 70.0, 35.0),
    ("A10", 125.0, 31.2),
    ("L40S", 362.0, 91.6),
    ("L40", 181.0, 90.5),
    ("L4", 121.0, 30.3),
    (r"RTX 5090$", 209.5, 104.8),
    (r"RTX 4090$", 165.2, 82.6),
    (r"RTX 3090$", 71.0, 35.6),
)
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SIZE = 768
_SECONDS = 0.1


def total_peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Sum of the peak FLOP/s of all ranks; None if one is unknown. A collective call.

    A GPU's peak is from its data sheet. A CPU's is measured by matrix products on all ranks at once, which share cores.
    """
    own = gpu_peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    if device.type == "cpu":
        dist.barrier()
        own = measure_peak_flops(precision)
    total = torch.tensor([float("nan") if own is None else own], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return None if bool(total.isnan()) else float(total)


def gpu_peak_flops(name: str, precision: Precision) -> float | None:
    """As `data_sheet_peak_flops`; None also for float32 products in TF32, which the table does not list."""
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        return None
    return data_sheet_peak_flops(name, precision)


def data_sheet_peak_flops(name: str, precision: Precision) -> float | None:
    """Dense FLOP/s of a GPU by name, float32 without TF32; None for a GPU that is not in the table."""
    for pattern, bf16, fp32 in _GPUS:
        if re.search(rf"\b(?:{pattern})(?!\w)", name):
            return 1e12 * (bf16 if precision == "bf16" else fp32)
    return None


def measure_peak_flops(precision: Precision) -> float:
    """Best FLOP/s of this process in a tenth of a second of matrix products."""
    left = torch.full((_SIZE, _SIZE), 0.5, dtype=_DTYPES[precision])
    best, began = float("inf"), time.perf_counter()
    product = torch.empty_like(left)
    while True:
        start = time.perf_counter()
        torch.mm(left, left, out=product)
        end = time.perf_counter()
        best = min(best, end - start)
        if end - began > _SECONDS:
            return 2.0 * _SIZE**3 / best
