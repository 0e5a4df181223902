"""Memory of a rank in training: DeepSpeed's states at each ZeRO stage, and the peak of a step.

The states follow the source of DeepSpeed 0.19. With P trained parameters of b bytes, F of the teacher, W ranks, and
R = P + F plus the frozen parameters:

    stage                    0             1             2             3
    parameters               bR            bR            bR            bR/W, gathered for use
    float32 copy of them     4P in bf16    4P/W          4P/W          4P/W
    Adam's moments           8P            8P/W          8P/W          8P/W
    gradients of a step      bP            bP            one bucket    one bucket
    sums over micro-batches  bP            6P in bf16    4P/W          4P/W
    teacher's average        4F in bf16    4F in bf16    4F in bf16    4F/W in bf16

The peak of a step is at the start of the backward pass, at the reduction of the last gradients, or at the update.
"""

from __future__ import annotations

from dataclasses import dataclass

from slap_fast.planning.footprint import PassCost
from slap_fast.training.engine import REDUCE_BUCKET_SIZE
from slap_fast.training.model import PretrainingModel

# DeepSpeed's defaults, in elements. At stage 3, smaller parameters stay gathered (param_persistence_threshold), and
# parameters that are reused within this distance are not released (max_reuse_distance).
_PERSISTENT = 100_000
_REUSE = 1_000_000_000
_UNBUCKETED = 500_000_000  # reduced at once at stage 0


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameter elements.

    Attributes:
        trained: of the student with its head.
        averaged: of the teacher.
        frozen: of the student, without gradients and average.
        small: of all, in parameters that stage 3 keeps gathered.
    """

    trained: int
    averaged: int
    frozen: int
    small: int

    @property
    def total(self) -> int:
        return self.trained + self.averaged + self.frozen

    @classmethod
    def of(cls, model: PretrainingModel) -> Parameters:
        counts = [parameter.numel() for parameter in model.parameters()]
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        averaged = sum(teacher.numel() for _, teacher, _ in model.teacher_pairs())
        small = sum(count for count in counts if count < _PERSISTENT)
        return cls(trained, averaged, sum(counts) - trained - averaged, small)


@dataclass(frozen=True)
class ZeroLayout:
    """How the training states are partitioned and offloaded.

    Attributes:
        stage: ZeRO stage.
        ranks: W.
        bf16: the model is in bfloat16, else in float32.
        accumulated: gradients are accumulated over micro-batches.
        offload_optimizer: optimizer states are in host memory.
        offload_parameters: parameters not in use are in host memory.
    """

    stage: int
    ranks: int
    bf16: bool
    accumulated: bool
    offload_optimizer: bool = False
    offload_parameters: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        parameters: including those that stage 3 gathers.
        optimizer: float32 copy of the parameters, and moments.
        gradients: that are allocated for the whole step.
        teacher: its float32 average.
        activations: peak, including the buffers of the losses.
        peak: of a step on the device.
        host: host memory of offloaded states.
    """

    parameters: float
    optimizer: float
    gradients: float
    teacher: float
    activations: float
    peak: float
    host: float = 0.0


def memory(parameters: Parameters, layout: ZeroLayout, cost: PassCost, loss_bytes: float) -> Memory:
    """Memory of one rank.

    Args:
        cost: of a micro-batch.
        loss_bytes: of the batch and the buffers of the losses, which `cost` does not include.
    """
    width = 2 if layout.bf16 else 4
    trained, averaged = parameters.trained, parameters.averaged
    stage, accumulated = layout.stage, layout.accumulated
    part = trained / layout.ranks if stage else trained
    every = width * parameters.total
    keeps_all = stage == 0 or (stage == 1 and not layout.offload_optimizer)

    held: float = every
    host = 0.0
    if stage == 3:
        shards = every / layout.ranks
        gathered = width * min(parameters.total, _REUSE) if layout.ranks > 1 or layout.offload_parameters else 0.0
        held = gathered + (width * parameters.small if layout.offload_parameters else shards)
        host += shards if layout.offload_parameters else 0.0
    copies = 4 * part if stage or layout.bf16 else 0.0
    optimizer = copies + 8 * part
    teacher = (4 * averaged / (layout.ranks if stage == 3 else 1)) if layout.bf16 else 0.0
    if layout.offload_optimizer:
        host += optimizer + 4 * part
        optimizer = 0.0

    gradients, reduction, update = _gradients(layout, trained, part, width)
    with_gradients = keeps_all and not accumulated
    activations = (cost.peak_bytes_with_gradients if with_gradients else cost.peak_bytes) + loss_bytes
    teacher_update = 4 * averaged if layout.bf16 and stage < 3 else 0.0
    states = held + optimizer + teacher + gradients
    peak = states + max(activations, reduction, update, teacher_update)
    return Memory(held, optimizer, gradients, teacher, activations, peak, host)


def _gradients(layout: ZeroLayout, trained: float, part: float, width: int) -> tuple[float, float, float]:
    """Bytes of gradients during the whole step, at the last reduction, and at the update."""
    stage, accumulated = layout.stage, layout.accumulated
    precise = 4 if accumulated or not layout.bf16 else width  # of sums over micro-batches
    bucket = min(trained, REDUCE_BUCKET_SIZE)
    # A bucket, its flattened copy, and in bf16 a float32 copy to send.
    staging = bucket * (2 * width + (4 if layout.bf16 else 0))
    own = 0.0 if layout.offload_optimizer else 4 * part
    if stage == 0:
        flat = min(trained, _UNBUCKETED) * (width + (4 if layout.bf16 else 0))
        whole = width * trained
        update = 4 * trained if layout.bf16 else 0.0
        return (whole, flat, update) if accumulated else (0.0, whole + flat, whole + update)
    if stage == 1 and accumulated and layout.bf16 and not layout.offload_optimizer:
        # DeepSpeed's BF16_Optimizer keeps sums and gradients of all parameters, and reduces them at once.
        return (4 + width) * trained, 4 * min(trained, _UNBUCKETED), 0.0
    if stage == 1:
        whole = width * trained
        return (whole, staging + width * part, own) if accumulated else (0.0, whole + staging, width * part + own)
    if stage == 2:
        return precise * part if accumulated else 0.0, staging + width * part, width * part + own
    # The float32 bucket to send is allocated for the whole step.
    return 4 * bucket + precise * part, 4 * bucket, own
