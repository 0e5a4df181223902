"""Each op at the paper's sizes, each variant of its kernels: against float64, twice for the same bits, over NaN.

An error is right up to twice that of PyTorch's own operations in the same dtype.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_round.jobs import Job, arguments, run_all
from benchmarks.gpu_round.operations import SIZES, Operation, operations
from slap_fast.kernels import variants

STAGE = "smoke"


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    jobs: list[Job] = [
        (operation.label(choice), partial(_check, operation, choice, options.device))
        for operation in operations(SIZES[options.size], options.device)
        for choice in operation.variants(options.device)
    ]
    return run_all(STAGE, jobs, options)


@lru_cache(maxsize=1)  # the variants of an operation follow one another
def _reference(operation: Operation) -> tuple[list[Tensor], list[float]]:
    """Results in float64, and how large an error of each is right."""
    exact = operation.run(operation.plain, torch.float64)
    plain = operation.run(operation.plain)
    limits = [
        2 * _distance(own, right) + _rounding(own) * float(right.norm())
        for own, right in zip(plain, exact, strict=True)
    ]
    return exact, limits


def _check(operation: Operation, choice: dict[str, str], device: str) -> dict[str, Any]:
    exact, limits = _reference(operation)
    with variants.use(**choice), _poisoned():
        found = operation.run(operation.backend(device))
        again = operation.run(operation.backend(device))
    # Of what is right; NaN where a result is NaN, which compares as wrong.
    shares = [_distance(own, right) / limit for own, right, limit in zip(found, exact, limits, strict=True)]
    same_bits = all(torch.equal(*pair) for pair in zip(found, again, strict=True))
    right = all(share <= 1.0 for share in shares)
    reason = {} if right and same_bits else {"reason": "other bits when repeated" if right else "off by too much"}
    return {"ok": right and same_bits, "errors_of_allowed": shares, "same_bits": same_bits, **reason}


def _distance(own: Tensor, right: Tensor) -> float:
    return float((own.double() - right.double()).norm())


def _rounding(x: Tensor) -> float:
    """Relative error that luck explains: of many values' norm a fraction of their rounding, of one value twice it."""
    eps = torch.finfo(x.dtype).eps if x.dtype.is_floating_point else 0.0
    return 2 * eps if x.numel() == 1 else eps / 4


@contextmanager
def _poisoned() -> Iterator[None]:
    """Memory that nobody has written reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    sys.exit(main())
