"""How long a step takes, as a roofline has it: every part waits for arithmetic, or for memory, or for the network.

A product of matrices takes the longer of its operations and its bytes; attention and the losses, which keep what they
work on near, take their operations; all else takes its bytes. Starting a kernel costs a CPU its time, and a GPU only
where the kernels are shorter; so do the hooks that stage 3 has around every module. Exchanges between ranks are counted
as if nothing ran beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from slap_fast.config.model import ModelConfig
from slap_fast.models.flops import BACKWARD, forward_flops
from slap_fast.planning.devices import Device
from slap_fast.planning.footprint import Passes
from slap_fast.planning.memory import Layout, Parameters

# Attention computes its scores again on the way back: five products for the forward's two.
_ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, on one of the ranks."""

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
    """What a rank does in a step.

    Attributes:
        passes: of each micro-batch.
        embeddings: the pass before, where there are several.
        micro_batches: how many.
        clips: of the rank.
        audio: audio tokens of each clip of a micro-batch.
        captions: caption tokens of each.
        masked: audio tokens that the prototype head sees, in a micro-batch.
    """

    passes: Passes
    embeddings: Passes | None
    micro_batches: float
    audio: Sequence[int]
    captions: Sequence[int]
    masked: int


def step_time(
    step: Step,
    config: ModelConfig,
    parameters: Parameters,
    layout: Layout,
    device: Device,
    *,
    batch_size: int,
    shared_pass: bool,
    checkpointed: bool,
    sinkhorn_iterations: int,
) -> StepTime:
    """The step of one rank; all have the same to do."""
    rate, bandwidth = device.rate(bf16=layout.bf16), device.bandwidth.value
    attention, losses = _operations(
        step, config, shared_pass=shared_pass, checkpointed=checkpointed, sinkhorn_iterations=sinkhorn_iterations
    )
    every = [step.passes] if step.embeddings is None else [step.passes, step.embeddings]
    products = sum(max(operations / rate, moved / bandwidth) for each in every for operations, moved in each.products)
    traffic = sum(each.traffic for each in every) / bandwidth
    calls = sum(each.calls for each in every) * device.call.value
    if layout.stage == 3:
        calls += sum(each.modules for each in every) * device.hook.value
    busy = products + traffic + (attention + losses) / rate
    waiting = calls if device.is_cpu else max(0.0, calls - busy)
    count = step.micro_batches
    return StepTime(
        products=count * products,
        attention=count * attention / rate,
        losses=count * losses / rate,
        memory=count * traffic,
        calls=count * waiting,
        collectives=exchanged(parameters, layout, config, batch_size, count)
        / device.collective_bandwidth(layout.ranks),
        update=_updated(parameters, layout) / bandwidth,
    )


def exchanged(
    parameters: Parameters, layout: Layout, config: ModelConfig, batch_size: int, micro_batches: float
) -> float:
    """Bytes that a rank sends in a step: gradients in float32, parameters, and what the losses compare."""
    ranks = layout.ranks
    if ranks == 1:
        return 0.0
    around = (ranks - 1) / ranks
    width = 2 if layout.bf16 else 4
    # Stages 2 and 3 reduce the gradients of each micro-batch.
    times = micro_batches if layout.stage >= 2 else 1.0
    gradients = times * (1 if layout.stage == 3 else 2) * around * 4 * parameters.trained
    gathered = 0.0
    if layout.stage in (1, 2):
        gathered = around * width * parameters.trained
    elif layout.stage == 3:
        passes = micro_batches * (2 if micro_batches > 1 else 1)
        gathered = passes * around * width * (parameters.trained + parameters.averaged)
    # Captions' embeddings and their gradients.
    embeddings = 3 * around * 4 * batch_size * config.audio.width
    return gradients + gathered + embeddings


def _operations(
    step: Step, config: ModelConfig, *, shared_pass: bool, checkpointed: bool, sinkhorn_iterations: int
) -> tuple[float, float]:
    """Operations of attention and of the losses over one micro-batch, with all that is computed again."""
    forward = forward_flops(config, step.audio, step.captions, step.masked)
    attention = 0.0
    for part, counted in forward.items():
        audio = part == "audio_encoder"
        student = 1 if not audio or shared_pass else 2
        passes = student * (1 + _ATTENTION_BACKWARD + checkpointed) + audio
        if step.embeddings is not None and part != "caption_decoder":
            passes += 1 + audio
        attention += passes * counted.attention
    decoded = sum(step.captions) - len(step.captions)
    vocabulary = 2.0 * config.text.vocab_size * config.caption.width * decoded
    head = config.prototype
    scores = 2.0 * head.prototypes * head.bottleneck * step.masked
    # The student's scores with their two gradients; the teacher's in each round of Sinkhorn-Knopp, and as targets.
    return attention, (1 + BACKWARD) * (vocabulary + scores) + (sinkhorn_iterations + 1) * scores


def _updated(parameters: Parameters, layout: Layout) -> float:
    """Bytes that update and teacher read and write."""
    width = 2 if layout.bf16 else 4
    own = parameters.trained / (layout.ranks if layout.stage else 1)
    averaged = parameters.averaged / (layout.ranks if layout.stage == 3 else 1)
    # Gradient read for its norm, scaled and read again; parameter, moments read and written; parameter published.
    adam = own * (4 * 4 + 6 * 4 + 4 + width)
    # Student and average read, average written and published.
    return adam + averaged * (width + 8 + (width if layout.bf16 else 0))
