"""What a device holds in training: DeepSpeed's states at each ZeRO stage, and the peak of a step.

The states follow DeepSpeed 0.19's source. With P trained parameters of b bytes, F of the teacher, and W ranks:

    stage                    0             1             2             3
    parameters               b(P + F)      b(P + F)      b(P + F)      b(P + F)/W, gathered while in use
    float32 copy of them     4P in bf16    4P/W          4P/W          4P/W
    Adam's moments           8P            8P/W          8P/W          8P/W
    gradients of a step      bP            bP            one bucket    one bucket
    sums over micro-batches  bP            6P in bf16    4P/W          4P/W
    teacher's average        4F in bf16    4F in bf16    4F in bf16    4F/W in bf16

A step is at its peak at one of three moments: when the backward pass begins, when the last gradients are reduced, or at
the update.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from slap_fast.planning.footprint import Passes
from slap_fast.training.engine import REDUCE_BUCKET_SIZE

# DeepSpeed's defaults. A parameter of fewer elements stays gathered at stage 3, and none is released that will be used
# again within so many elements.
_PERSISTENT = 100_000
_REUSE = 1_000_000_000
_UNBUCKETED = 500_000_000  # elements that stage 0 reduces at once


@dataclass(frozen=True)
class Parameters:
    """Counts of elements.

    Attributes:
        trained: of the student with its head.
        averaged: of the teacher.
        small: of both, in parameters that stage 3 does not partition between uses.
    """

    trained: int
    averaged: int
    small: int

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        return cls(
            sum(count for count, trained in counts if trained),
            sum(count for count, trained in counts if not trained),
            sum(count for count, _ in counts if count < _PERSISTENT),
        )


@dataclass(frozen=True)
class Layout:
    """How the states lie.

    Attributes:
        stage: of ZeRO.
        ranks: W.
        bf16: the model is in bfloat16, else in float32.
        in_parts: a batch is accumulated over micro-batches.
        offload_optimizer: its states are in the host's memory.
        offload_parameters: so are parameters that are not in use.
    """

    stage: int
    ranks: int
    bf16: bool
    in_parts: bool
    offload_optimizer: bool = False
    offload_parameters: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        parameters: with what stage 3 gathers.
        optimizer: float32 copy and moments.
        gradients: that lie through the whole step.
        teacher: its float32 average.
        activations: with what the losses work on, at their peak.
        peak: of a step on the device.
        host: in the host's memory, if anything is offloaded.
    """

    parameters: float
    optimizer: float
    gradients: float
    teacher: float
    activations: float
    peak: float
    host: float = 0.0


def memory(parameters: Parameters, layout: Layout, passes: Passes, losses: float) -> Memory:
    """What one rank holds.

    Args:
        passes: of a micro-batch.
        losses: bytes that the losses work on beside it.
    """
    width = 2 if layout.bf16 else 4
    trained, averaged = parameters.trained, parameters.averaged
    stage, in_parts = layout.stage, layout.in_parts
    part = trained / layout.ranks if stage else trained
    every = width * (trained + averaged)
    keeps_all = stage == 0 or (stage == 1 and not layout.offload_optimizer)

    held: float = every
    host = 0.0
    if stage == 3:
        shards = every / layout.ranks
        gathered = width * min(trained + averaged, _REUSE) if layout.ranks > 1 or layout.offload_parameters else 0.0
        held = gathered + (width * parameters.small if layout.offload_parameters else shards)
        host += shards if layout.offload_parameters else 0.0
    copies = 4 * part if stage or layout.bf16 else 0.0
    optimizer = copies + 8 * part
    teacher = (4 * averaged / (layout.ranks if stage == 3 else 1)) if layout.bf16 else 0.0
    if layout.offload_optimizer:
        host += optimizer + 4 * part
        optimizer = 0.0

    gradients, reduction, update = _gradients(layout, trained, part, width)
    kept = keeps_all and not in_parts
    activations = (passes.held_with_gradients if kept else passes.held) + losses
    renewal = 4 * averaged if layout.bf16 and stage < 3 else 0.0
    states = held + optimizer + teacher + gradients
    peak = states + max(activations, reduction, update, renewal)
    return Memory(held, optimizer, gradients, teacher, activations, peak, host)


def _gradients(layout: Layout, trained: float, part: float, width: int) -> tuple[float, float, float]:
    """Bytes of gradients through the whole step, at the last reduction and at the update."""
    stage, in_parts = layout.stage, layout.in_parts
    precise = 4 if in_parts or not layout.bf16 else width  # of sums over micro-batches
    bucket = min(trained, REDUCE_BUCKET_SIZE)
    # A bucket, the same laid end to end, and what is sent: a float32 copy of that.
    staging = bucket * (2 * width + (4 if layout.bf16 else 0))
    own = 0.0 if layout.offload_optimizer else 4 * part
    if stage == 0:
        flat = min(trained, _UNBUCKETED) * (width + (4 if layout.bf16 else 0))
        whole = width * trained
        update = 4 * trained if layout.bf16 else 0.0
        return (whole, flat, update) if in_parts else (0.0, whole + flat, whole + update)
    if stage == 1 and in_parts and layout.bf16 and not layout.offload_optimizer:
        # DeepSpeed has an optimizer of its own for this: sums and gradients of all parameters, and reduced at once.
        return (4 + width) * trained, 4 * min(trained, _UNBUCKETED), 0.0
    if stage == 1:
        whole = width * trained
        return (whole, staging + width * part, own) if in_parts else (0.0, whole + staging, width * part + own)
    if stage == 2:
        return precise * part if in_parts else 0.0, staging + width * part, width * part + own
    # A bucket in the type that is sent lies there from the beginning.
    return 4 * bucket + precise * part, 4 * bucket, own
