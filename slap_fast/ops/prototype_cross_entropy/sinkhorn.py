"""Sinkhorn-Knopp in the log domain: balances a teacher's assignment of tokens to prototypes, across ranks.

    potential = sinkhorn_potential(teacher, teacher_prototypes, teacher_temperature=0.05)    # [T, D], [K, D] -> [K]

The balanced assignment is `softmax_k(logits - potential)` with `logits = teacher @ teacher_prototypes.T / temperature`:
each round of Sinkhorn-Knopp (as in DINOv2, arXiv 2304.07193, section 4) ends by normalizing over prototypes, which is
that softmax, and constants (total mass, number of tokens or prototypes) cancel in it. So a round only updates one
potential a prototype:

    potential = logsumexp_t(logits - logsumexp_k(logits - potential))        # the first round: logsumexp_t(logits)

and ranks exchange K numbers a round. Each sweep computes the `[T, K]` scores anew, a chunk of tokens at a time. The
Triton backend stores them in the first sweep if they fit a budget; later sweeps and the loss then read them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import autocast, collectives
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.prototype_cross_entropy import backend_native, backend_torch, backend_triton
from slap_fast.ops.prototype_cross_entropy.call import (
    Backend,
    check_first_sweep,
    check_later_sweep,
    check_sweep,
    require_iterations,
    require_positive,
    select,
    temperature_tensor,
    validate_teacher,
)
from slap_fast.ops.tensor_checks import accumulator

# In order of preference.
BACKENDS: dict[str, Backend] = {"native": backend_native, "triton": backend_triton, "torch": backend_torch}


@custom_op("slap_fast::sinkhorn_sweep", check=check_sweep, rule=autocast.low, cast=("teacher", "prototypes"))
def _sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str) -> Tensor:
    return BACKENDS[backend].sinkhorn_sweep(teacher, prototypes, temperature, potential)


@_sweep.register_fake
def _(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str) -> Tensor:
    return teacher.new_empty(prototypes.shape[0], dtype=accumulator(teacher.dtype))


@custom_op(
    "slap_fast::sinkhorn_first_sweep", check=check_first_sweep, rule=autocast.low, cast=("teacher", "prototypes")
)
def _first_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """The sweep without a potential, and the scores."""
    return backend_triton.first_sweep(teacher, prototypes, temperature)


@_first_sweep.register_fake
def _(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    potential = teacher.new_empty(prototypes.shape[0], dtype=torch.float32)
    return potential, backend_triton.new_scores(teacher, prototypes)


@custom_op("slap_fast::sinkhorn_later_sweep", check=check_later_sweep)
def _later_sweep(scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor) -> Tensor:
    """The sweep over stored scores."""
    return backend_triton.later_sweep(scores, tokens, temperature, potential)


@_later_sweep.register_fake
def _(scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor) -> Tensor:
    return torch.empty_like(potential)


def balance(
    teacher: Tensor,
    prototypes: Tensor,
    temperature: Tensor,
    iterations: int,
    group: dist.ProcessGroup | None,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """The potential after `iterations` rounds over the tokens of all ranks, and the teacher's scores if stored."""
    scores = None
    if backend == "triton" and backend_triton.stores_scores(teacher, prototypes):
        local, scores = _first_sweep(teacher, prototypes, temperature)
    else:
        local = _sweep(teacher, prototypes, temperature, None, backend)
    potential = _over_ranks(local, group)
    for _ in range(1, iterations):
        if scores is None:
            local = _sweep(teacher, prototypes, temperature, potential, backend)
        else:
            local = _later_sweep(scores, teacher.shape[0], temperature, potential)
        potential = _over_ranks(local, group)
    return potential, scores


def _over_ranks(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    summed: Any = sum(collectives.all_reduce_logsumexp(local, torch.zeros_like(local), group))
    return summed


def sinkhorn_potential(
    teacher: Tensor,
    teacher_prototypes: Tensor,
    *,
    teacher_temperature: float,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """The potential that balances the teacher's assignment of T tokens over K prototypes.

    Pass it to `prototype_cross_entropy` when that gets a part of these tokens, such as one micro-batch: targets then
    depend on all of them.

    Args:
        teacher: `[T, D]` float32, bfloat16, float16 or float64, L2-normalized by the caller.
        teacher_prototypes: `[K, D]`, dtype and device of `teacher`.
        teacher_temperature: positive.
        iterations: rounds of Sinkhorn-Knopp, at least 1.
        group: the ranks whose tokens are balanced together; T may differ and may be 0. None: this process alone.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        `[K]` float32 (float64 for float64), the same on every rank, without a gradient.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, or a backend that cannot serve.
    """
    teacher, prototypes, temperature, chosen = _checked(teacher, teacher_prototypes, teacher_temperature, backend)
    require_iterations("iterations", iterations)
    return balance(teacher, prototypes, temperature, iterations, group, chosen)[0]


def prototype_usage(
    teacher: Tensor,
    teacher_prototypes: Tensor,
    *,
    teacher_temperature: float,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """Each prototype's share of the teacher's assignment before Sinkhorn balances it.

    `mean_t(softmax_k(teacher @ teacher_prototypes.T / teacher_temperature))`, over the tokens of all ranks.

    Args:
        teacher: the arguments are those of `sinkhorn_potential`.

    Returns:
        `[K]` float32 (float64 for float64), the same on every rank, without a gradient. Zeros if no rank has a token.

    Raises:
        ValueError: as for `sinkhorn_potential`.
    """
    teacher, prototypes, temperature, chosen = _checked(teacher, teacher_prototypes, teacher_temperature, backend)
    # With a potential of 0 a sweep is the log of the softmax summed over tokens.
    mass = _sweep(teacher, prototypes, temperature, temperature.new_zeros(prototypes.shape[0]), chosen)
    largest, log_sum = collectives.all_reduce_logsumexp(mass, torch.zeros_like(mass), group)
    return (largest + log_sum).softmax(0).nan_to_num(0.0)


def _checked(
    teacher: Tensor, prototypes: Tensor, temperature: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Validated, detached tensors as sweeps take them, and the backend."""
    teacher, prototypes = autocast.cast(autocast.low, teacher, prototypes)
    validate_teacher(teacher, prototypes)
    require_positive("teacher_temperature", temperature)
    chosen = select(teacher, prototypes, backend)
    return teacher.detach(), prototypes.detach(), temperature_tensor(teacher, temperature), chosen
