"""Stage `smoke`: checks each op and each variant of its kernels at the paper's sizes.

Results are compared with float64 (the allowed error is twice that of PyTorch's operations in the same dtype). A second
run must give the same bits. Uninitialized memory is filled with NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_round.jobs import Job, job_parser, run_jobs
from benchmarks.gpu_round.operations import SIZES, Operation, operations
from slap_fast.kernels import variants

STAGE = "smoke"


def main() -> int:
    options = job_parser(__doc__).parse_args()
    jobs: list[Job] = [
        (operation.label(choice), partial(_check, operation, choice, options.device))
        for operation in operations(SIZES[options.size], options.device)
        for choice in operation.variants(options.device)
    ]
    return run_jobs(STAGE, jobs, options)


@lru_cache(maxsize=1)  # the variants of an operation are consecutive
def _reference(operation: Operation) -> tuple[list[Tensor], list[float]]:
    """Results in float64, and the allowed error of each."""
    exact = operation.run(operation.plain, torch.float64)
    plain = operation.run(operation.plain)
    limits = [
        2 * _distance(own, expected) + _rounding(own) * float(expected.norm())
        for own, expected in zip(plain, exact, strict=True)
    ]
    return exact, limits


def _check(operation: Operation, choice: dict[str, str], device: str) -> dict[str, Any]:
    exact, limits = _reference(operation)
    with variants.use(**choice), _poisoned():
        found = operation.run(operation.backend(device))
        again = operation.run(operation.backend(device))
    # NaN if the result is NaN, and `NaN <= 1` is false.
    shares = [_distance(own, expected) / limit for own, expected, limit in zip(found, exact, limits, strict=True)]
    same_bits = all(torch.equal(*pair) for pair in zip(found, again, strict=True))
    accurate = all(share <= 1.0 for share in shares)
    reason = {}
    if not accurate or not same_bits:
        reason["reason"] = "a second run gives other bits" if accurate else "the error is too large"
    return {"ok": accurate and same_bits, "errors_of_allowed": shares, "same_bits": same_bits, **reason}


def _distance(own: Tensor, expected: Tensor) -> float:
    return float((own.double() - expected.double()).norm())


def _rounding(x: Tensor) -> float:
    """Allowed relative error besides that of PyTorch: rounding of a single value, a fraction of it for many values."""
    eps = torch.finfo(x.dtype).eps if x.dtype.is_floating_point else 0.0
    return 2 * eps if x.numel() == 1 else eps / 4


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fill uninitialized memory with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    sys.exit(main())
