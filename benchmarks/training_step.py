"""Benchmark of one training step: the packed model against the same model padded, with SDPA and masks.

A step is log-mel, forward and backward of the three objectives, gradient clipping, AdamW and the EMA update of the
teacher. In bf16 the weights are bfloat16 with float32 master copies, as in DeepSpeed. Both peers run the same modules
with the same weights, clips, masks and captions, and are compared with the padded model in float64.

The mix of durations represents web-scale captioned audio: half of the clips last exactly 10 s (AudioSet, VGGSound,
AudioCaps), a quarter is uniform from 15 to 30 s (Clotho), and a quarter is log-uniform from 1 to 30 s (sound effects,
Freesound). Captions have 8 to 22 tokens. The second workload has only clips of 10 s: without padding, it shows the cost
of packing itself.

Expected gain: the time of projections is proportional to the tokens, so padding to the longest clip multiplies it by
`1 / (1 - padding share)`, about 2.0 for this mix. Attention gains more: a masked kernel computes every pair of the
longest clip, also in the local layers, whose window of 97 keys is a seventh of 30 s. The text tower gains likewise, but
is small. The prototype loss (only masked tokens) and the optimizer (only weights) gain nothing.

`step_flops` adds this up. The fact "arithmetic saved" of a case is the padded count divided by the packed count: the
speedup if both peers reached the same FLOP/s and did nothing else. The measured speedup is smaller if packed attention
reaches fewer FLOP/s than SDPA, or because of time outside matrix products: norms and rotary embedding, limited by
memory bandwidth, also shrink with the tokens; the optimizer and the teacher update (about 36 bytes per weight) do not.
Activations are most of the memory, and they shrink with the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings
from benchmarks.harness.machine import available_bytes, has_bf16_units
from benchmarks.matrix_product import DTYPE_NAMES, USEFUL, product_case, product_name
from benchmarks.padded_model import PaddedBatch, PaddedPretrainingModel
from benchmarks.step_flops import step_flops
from slap_fast.config.model import (
    AudioEncoderConfig,
    CaptionDecoderConfig,
    ModelConfig,
    PrototypeHeadConfig,
    TextEncoderConfig,
)
from slap_fast.config.recipe import AugmentationConfig, ObjectivesConfig, OptimizerConfig
from slap_fast.data.loading.augmentation import MaskSampler
from slap_fast.data.loading.batch import Batch
from slap_fast.data.loading.collate import LoadedClip, collate
from slap_fast.ops import dispatch
from slap_fast.training.compilation import compile_blocks
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import build_optimizer
from slap_fast.training.model import PretrainingModel

TITLE = "One training step, packed against padded with SDPA and masks"

TEACHER_TEMPERATURE = 0.07
EMA_MOMENTUM = 0.994
# About ten times (float32) and twice (bfloat16) the largest error of either peer at any size.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 6e-2}
GPU_CLIPS = 256
GPU_CLIPS_BYTES = 110e9  # memory for GPU_CLIPS; with less, half as many clips
OPTIMIZER = OptimizerConfig()
MODULES = (
    "student.audio_encoder",
    "student.text_encoder",
    "student.audio_pooling",
    "student.text_pooling",
    "student.caption_decoder",
    "student.logit_scale",
    "student_head",
)

QUICK_MODEL = ModelConfig(
    audio=AudioEncoderConfig(width=32, layers=3, heads=2, mlp_width=64, pooling_heads=2, window_columns=4),
    text=TextEncoderConfig(
        pretrained=None, vocab_size=64, width=32, layers=2, heads=2, mlp_width=48, max_length=32, pooling_heads=2
    ),
    caption=CaptionDecoderConfig(width=32, layers=2, heads=2, mlp_width=64),
    prototype=PrototypeHeadConfig(prototypes=64, hidden=32, bottleneck=16),
)
CPU_MODEL = ModelConfig(
    audio=AudioEncoderConfig(width=256, layers=6, heads=4, mlp_width=768, pooling_heads=4),
    text=TextEncoderConfig(
        pretrained=None, vocab_size=4096, width=256, layers=4, heads=4, mlp_width=384, pooling_heads=4
    ),
    caption=CaptionDecoderConfig(width=256, layers=2, heads=4, mlp_width=768),
    prototype=PrototypeHeadConfig(prototypes=2048, hidden=512, bottleneck=128),
)
PAPER_MODEL = ModelConfig(text=replace(TextEncoderConfig(), pretrained=None))


@dataclass(frozen=True)
class Workload:
    """Durations of a batch and the model that runs it.

    Attributes:
        durations: of each clip, in seconds.
        model: configuration.
        dtype: of weights and activations.
        device: "cpu" or "cuda".
        checked: durations of the batch for the check of losses and gradients, if float64 needs too much memory for the
            whole batch.
    """

    durations: tuple[float, ...]
    model: ModelConfig
    dtype: torch.dtype
    device: str
    checked: tuple[float, ...] | None = None

    def to_check(self) -> Workload:
        return self if self.checked is None else replace(self, durations=self.checked, checked=None)

    def batch(self, dtype: torch.dtype | None = None) -> Batch:
        """Clips, masks and captions; the same at every call."""
        generator = torch.Generator().manual_seed(0)
        clips = []
        for clip, seconds in enumerate(self.durations):
            waveform = 0.1 * torch.randn(round(seconds * self.model.mel.sample_rate), generator=generator)
            words = torch.randint(self.model.text.vocab_size, (caption_length(clip),), generator=generator)
            clips.append(LoadedClip(clip, waveform, words.tolist()))
        packed = collate(clips, self.model, MaskSampler(AugmentationConfig(), seed=0), step=0)
        if dtype == torch.float64:
            packed = replace(packed, waveform=packed.waveform.double())
        return packed.to(self.device)

    def pretraining_model(self, dtype: torch.dtype) -> PretrainingModel:
        """A model with the same weights at every call, rounded to `dtype`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = PretrainingModel(self.model, ObjectivesConfig(), load_pretrained_text=False)
        return model.to(self.device, dtype)


def mixed_durations(clips: int) -> tuple[float, ...]:
    """Quantiles of the mix in the module docstring, in seconds. `clips` is a multiple of 4."""
    quarter = clips // 4
    probabilities = [(index + 0.5) / quarter for index in range(quarter)]
    uniform = [15.0 + 15.0 * p for p in probabilities]
    log_uniform = [math.exp(p * math.log(30.0)) for p in probabilities]
    return (*[10.0] * (2 * quarter), *uniform, *log_uniform)


def caption_length(clip: int) -> int:
    return 8 + 5 * clip % 15


def cases(settings: Settings) -> list[Case]:
    if settings.device == "cuda" and not settings.quick:
        return _gpu_cases(settings)
    model, clips = (QUICK_MODEL, 4) if settings.quick else (CPU_MODEL, 8)
    dtypes = [torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])]
    scale = 0.2 if settings.quick else 1.0
    mixes = {"mixed": mixed_durations(clips), "equal": (10.0,) * clips}
    return [
        _case(
            f"{name} durations, {DTYPE_NAMES[dtype]}",
            Workload(durations, model, dtype, settings.device),
            (PADDED, PACKED),
        )
        for name, seconds in mixes.items()
        for durations in [tuple(scale * duration for duration in seconds)]
        for dtype in dtypes
    ]


def _gpu_cases(settings: Settings) -> list[Case]:
    """The paper's model, the most informative case first. Losses and gradients are checked on four clips of the mix,
    because a float64 reference of 64 clips takes about 220 GB."""
    equal = workload_to_trace(settings)
    clips = len(equal.durations)
    mixed = replace(equal, durations=mixed_durations(clips // 2))
    single = replace(equal, durations=(10.0,) * (clips // 4), dtype=torch.float32)
    unfused = Execution("packed, PyTorch's norm, rotary and SwiGLU", _packed_forward, backends=UNFUSED)
    compiled = Execution("packed, compiled blocks", _packed_forward, prepare=compile_blocks)
    return [
        product_case(torch.bfloat16, settings),
        _case(f"{clips} clips of 10 s, bf16", equal, (PADDED, PACKED, unfused), peak=product_name(torch.bfloat16)),
        _case(f"{clips // 2} clips, mixed durations, bf16", mixed, (PADDED, PACKED), peak=product_name(torch.bfloat16)),
        _case(f"{clips} clips of 10 s, bf16, compiled", equal, (PACKED, compiled), peak=product_name(torch.bfloat16)),
        _case(f"{clips // 4} clips of 10 s, fp32", single, (PADDED, PACKED)),
    ]


def workload_to_trace(settings: Settings) -> Workload:
    """Clips of 10 s and the paper's model in bfloat16, as many as fit in GPU memory; small in a quick run."""
    if settings.quick:
        return Workload((2.0,) * 4, QUICK_MODEL, torch.bfloat16, settings.device)
    clips = GPU_CLIPS if available_bytes(settings.device) > GPU_CLIPS_BYTES else GPU_CLIPS // 2
    return Workload((10.0,) * clips, PAPER_MODEL, torch.bfloat16, settings.device, checked=mixed_durations(4))


def _case(name: str, workload: Workload, executions: Sequence[Execution], peak: str | None = None) -> Case:
    samples = [round(seconds * workload.model.mel.sample_rate) for seconds in workload.durations]
    tokens = [workload.model.num_tokens(count) for count in samples]
    captions = [caption_length(clip) for clip in range(len(samples))]
    packed_flops = step_flops(tokens, captions, workload.model, padded=False)
    padded_flops = step_flops(tokens, captions, workload.model, padded=True)
    return Case(
        name=name,
        peers=tuple(Peer(execution.name, partial(set_up, workload, execution)) for execution in executions),
        baseline=executions[0].name,
        reference=lambda: _reference(workload.to_check()),
        tolerance=TOLERANCES[workload.dtype],
        work={USEFUL: packed_flops / 1e9, "audio tokens": sum(tokens)},
        facts={
            "clips": len(tokens),
            "shortest (s)": min(workload.durations),
            "longest (s)": max(workload.durations),
            "audio tokens": sum(tokens),
            "padding share": 1 - sum(tokens) / (len(tokens) * max(tokens)),
            "caption padding share": 1 - sum(captions) / (len(captions) * max(captions)),
            "arithmetic saved": padded_flops / packed_flops,
        },
        peak=peak,
        replayable=False,  # a step changes its weights
    )


Forward = Callable[[], dict[str, Tensor]]


def _packed_forward(workload: Workload, model: PretrainingModel) -> Forward:
    batch = workload.batch(next(model.parameters()).dtype)
    return lambda: model(batch, TEACHER_TEMPERATURE)


def _padded_forward(workload: Workload, model: PretrainingModel) -> Forward:
    padded = PaddedPretrainingModel(model)
    batch = PaddedBatch.from_packed(workload.batch(next(model.parameters()).dtype), workload.model)
    return lambda: padded(batch, TEACHER_TEMPERATURE)


@dataclass(frozen=True)
class Execution:
    """How a peer runs the model.

    Attributes:
        name: of the peer.
        forward: makes the function that computes the losses of a batch.
        prepare: changes the model before it runs.
        backends: backends that "auto" tries first, by op.
    """

    name: str
    forward: Callable[[Workload, PretrainingModel], Forward]
    prepare: Callable[[PretrainingModel], None] | None = None
    backends: Mapping[str, str] = field(default_factory=dict)


PADDED = Execution("padded, SDPA", _padded_forward)
PACKED = Execution("packed", _packed_forward)
UNFUSED = {"rms_norm": "torch", "apply_rotary": "torch", "swiglu": "torch"}


def set_up(workload: Workload, execution: Execution) -> Run:
    model = workload.pretraining_model(workload.dtype)
    if execution.prepare is not None:
        execution.prepare(model)
    forward = execution.forward(workload, model)
    checked = forward if workload.checked is None else execution.forward(workload.to_check(), model)
    update = _Update(model)

    def step() -> None:
        with dispatch.preferring(**execution.backends):
            forward()["loss"].backward()
        update()

    def outputs() -> Outputs:
        with dispatch.preferring(**execution.backends):
            return _losses_and_gradients(model, checked)

    return Run(step=step, outputs=outputs)


def _reference(workload: Workload) -> Outputs:
    model = workload.pretraining_model(torch.float64)
    return _losses_and_gradients(model, _padded_forward(workload, model))


class _Update:
    """Gradient clipping, AdamW on float32 weights and the EMA update: what follows the backward pass in training."""

    def __init__(self, model: PretrainingModel) -> None:
        self.optimizer = build_optimizer(model, OPTIMIZER)
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = OPTIMIZER.learning_rate  # set by the schedule in training
        self.weights = [weight for group in groups for weight in group["params"]]
        self.masters = self.weights
        if self.weights[0].dtype == torch.bfloat16:
            for group in groups:
                group["params"] = [nn.Parameter(weight.detach().float()) for weight in group["params"]]
            self.masters = [master for group in groups for master in group["params"]]
        self.teacher = TeacherAverage(model.teacher_pairs())

    @torch.no_grad()
    def __call__(self) -> None:
        if self.masters is not self.weights:
            for master, weight in zip(self.masters, self.weights, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
        nn.utils.clip_grad_norm_(self.masters, OPTIMIZER.gradient_clipping)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters is not self.weights:
            torch._foreach_copy_(self.weights, self.masters)
        self.teacher.update(EMA_MOMENTUM)


def _losses_and_gradients(model: PretrainingModel, forward: Forward) -> Outputs:
    losses = forward()
    losses["loss"].backward()
    outputs = {name: losses[name].detach() for name in ("contrastive", "self_distillation", "caption")}
    for name, module in model.named_modules():
        if name in MODULES:
            gradients = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
            outputs[f"gradient of {name}"] = torch.cat(gradients)
    model.zero_grad(set_to_none=True)
    return outputs
