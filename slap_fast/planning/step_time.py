"""Step time by a roofline model: each part is bound by compute, by memory bandwidth, or by the network.

A matrix product takes the longer of its compute and memory times. Attention and the losses, whose kernels keep their
intermediate results in cache, are compute-bound; everything else is memory-bound. Kernel launches and the module hooks
of stage 3 add to the time on a CPU; on a GPU they run ahead of the kernels and add only what exceeds them. Collectives
are assumed not to overlap with compute.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.models.flops import BACKWARD, backward_products, forward_flops
from slap_fast.planning.devices import Device
from slap_fast.planning.footprint import PassCost
from slap_fast.planning.memory import Parameters, ZeroLayout

# The backward of attention recomputes the scores: five products, where the forward has two.
_ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step of one rank, by what they are spent on."""

    products: float
    attention: float
    losses: float
    memory: float
    calls: float
    collectives: float
    update: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Step:
    """Work of a rank in a step.

    Attributes:
        training: cost of forward and backward of a micro-batch.
        embedding: cost of the embedding pass of a micro-batch; None if the batch is not split.
        micro_batches: their number.
        audio: audio tokens of each clip of a micro-batch.
        captions: caption tokens of each clip of a micro-batch.
        masked: masked audio tokens of a micro-batch.
    """

    training: PassCost
    embedding: PassCost | None
    micro_batches: float
    audio: Sequence[int]
    captions: Sequence[int]
    masked: int


def step_time(
    step: Step,
    config: ModelConfig,
    parameters: Parameters,
    layout: ZeroLayout,
    device: Device,
    *,
    batch_size: int,
    objectives: ObjectivesConfig,
    frozen: Collection[str] = (),
    checkpointed: bool,
) -> StepTime:
    """Time of a step of one rank; all ranks have the same work.

    Args:
        frozen: parts that are not trained (`model.freeze`).
    """
    rate, bandwidth = device.rate(bf16=layout.bf16), device.bandwidth.value
    attention, losses = _flops(step, config, objectives, frozen, checkpointed=checkpointed)
    costs = [step.training] if step.embedding is None else [step.training, step.embedding]
    products = sum(max(flops / rate, moved / bandwidth) for cost in costs for flops, moved in cost.products)
    traffic = sum(cost.traffic for cost in costs) / bandwidth
    calls = sum(cost.calls for cost in costs) * device.call.value
    if layout.stage == 3:
        calls += sum(cost.modules for cost in costs) * device.hook.value
    busy = products + traffic + (attention + losses) / rate
    launches = calls if device.is_cpu else max(0.0, calls - busy)
    count = step.micro_batches
    compared = config.audio.width if "contrastive" in objectives.active else 0
    return StepTime(
        products=count * products,
        attention=count * attention / rate,
        losses=count * losses / rate,
        memory=count * traffic,
        calls=count * launches,
        collectives=communicated_bytes(parameters, layout, batch_size * compared, count)
        / device.collective_bandwidth(layout.ranks),
        update=_update_bytes(parameters, layout) / bandwidth,
    )


def communicated_bytes(parameters: Parameters, layout: ZeroLayout, embeddings: int, micro_batches: float) -> float:
    """Bytes that a rank sends in a step: float32 gradients, parameters, and the embeddings for the contrastive loss.

    Args:
        embeddings: elements of the text embeddings of all ranks; 0 without the contrastive loss.
    """
    ranks = layout.ranks
    if ranks == 1:
        return 0.0
    ring = (ranks - 1) / ranks
    width = 2 if layout.bf16 else 4
    # Stages 2 and 3 reduce gradients once per micro-batch.
    reductions = micro_batches if layout.stage >= 2 else 1.0
    gradients = reductions * (1 if layout.stage == 3 else 2) * ring * 4 * parameters.trained
    gathered = 0.0
    if layout.stage in (1, 2):
        gathered = ring * width * parameters.trained
    elif layout.stage == 3:
        passes = micro_batches * (2 if micro_batches > 1 else 1)
        gathered = passes * ring * width * parameters.total
    # Text embeddings and their gradients.
    return gradients + gathered + 3 * ring * 4 * embeddings


def _flops(
    step: Step, config: ModelConfig, objectives: ObjectivesConfig, frozen: Collection[str], *, checkpointed: bool
) -> tuple[float, float]:
    """FLOPs of attention and of the losses over one micro-batch, including recomputation."""
    active = objectives.active
    attention = 0.0
    for part, part_flops in forward_flops(config, step.audio, step.captions, step.masked, active).items():
        is_audio = part == "audio_encoder"
        student_passes = objectives.student_passes if is_audio else 1
        teacher_passes = 1 if is_audio and "self_distillation" in active else 0
        backward = _ATTENTION_BACKWARD + checkpointed if backward_products(part, frozen) else 0.0
        passes = student_passes * (1 + backward) + teacher_passes
        if step.embedding is not None and part != "caption_decoder":
            passes += ("contrastive" in active) + teacher_passes
        attention += passes * part_flops.attention
    vocabulary = scores = 0.0
    if "caption" in active:
        decoded = sum(step.captions) - len(step.captions)
        vocabulary = 2.0 * config.text.vocab_size * config.caption.width * decoded
    if "self_distillation" in active:
        scores = 2.0 * config.prototype.prototypes * config.prototype.bottleneck * step.masked
    # The student's scores with their two gradients; the teacher's in each Sinkhorn-Knopp iteration and as targets.
    return attention, (1 + BACKWARD) * (vocabulary + scores) + (objectives.sinkhorn_iterations + 1) * scores


def _update_bytes(parameters: Parameters, layout: ZeroLayout) -> float:
    """Bytes that the optimizer and the average of the teacher read and write."""
    width = 2 if layout.bf16 else 4
    own = parameters.trained / (layout.ranks if layout.stage else 1)
    averaged = parameters.averaged / (layout.ranks if layout.stage == 3 else 1)
    # Gradient: norm, scaling, update. Parameter and moments: read and written. Parameter: cast to the model's dtype.
    adam = own * (4 * 4 + 6 * 4 + 4 + width)
    # Student and average read, average written, also in the model's dtype.
    return adam + averaged * (width + 8 + (width if layout.bf16 else 0))
