"""One training step: the packed model against the same model padded with SDPA and masks.

A step is the front end, the three objectives forward and backward, gradient clipping, AdamW and the teacher's average.
In bf16 the weights are bfloat16 with float32 master copies, as DeepSpeed keeps them. Both peers run the same modules
with the same weights over the same clips, masks and captions, and both are held against the padded model in float64.

The mix of durations stands for web-scale captioned audio, as far as its sources tell: half of the clips last exactly
10 s (AudioSet, VGGSound, AudioCaps), a quarter is spread evenly over 15 to 30 s (Clotho), and a quarter log-evenly over
1 to 30 s (sound effects, Freesound). Captions have 8 to 22 tokens. The second workload has clips of 10 s only: nothing
to pad, so that what packing itself costs is seen.

What to expect. Projections cost `tokens x weights`, so padding to the longest costs them `1 / (1 - padding share)`: 2.0
at a share of one half, about that of this mix. Attention costs more than that: a masked kernel visits every pair of the
longest clip squared, also in the local layers, whose window of 97 keys is a seventh of 30 s. The text tower pads
likewise, but is small. The prototypes see masked tokens only and the optimizer weights only: neither gains.

`step_flops` adds this up. The fact "arithmetic saved" of a case is its padded over its packed count: the ratio of two
peers that reach the same FLOP/s and do nothing else. A measured ratio below it is what packed attention loses against
SDPA, and time outside of matrix products: norms and rotations, bound by bytes that shrink with the tokens as well, and
the optimizer and teacher, bound by some 36 bytes a weight that do not. Activations are most of the memory and they too
shrink with the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings
from benchmarks.harness.machine import has_bf16_units
from benchmarks.padded_model import PaddedBatch, PaddedPretrainingModel
from benchmarks.step_flops import step_flops
from slap_fast.data.augmentation import MaskSampler
from slap_fast.data.batch import Batch
from slap_fast.data.collate import LoadedClip, collate
from slap_fast.models.config import (
    AudioEncoderConfig,
    CaptionDecoderConfig,
    ModelConfig,
    PrototypeHeadConfig,
    TextEncoderConfig,
)
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import build_optimizer
from slap_fast.training.pretraining import PretrainingModel
from slap_fast.training.recipe import AugmentationConfig, ObjectivesConfig, OptimizerConfig

TITLE = "One training step, packed against padded with SDPA and masks"

TEACHER_TEMPERATURE = 0.07
EMA_MOMENTUM = 0.994
# About ten and two times what either peer was seen to be off, at any size.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 6e-2}
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
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
    """A batch to be, with the model for it."""

    durations: tuple[float, ...]
    model: ModelConfig
    dtype: torch.dtype
    device: str

    def batch(self, dtype: torch.dtype | None = None) -> Batch:
        """The same clips, masks and captions at every call."""
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
        """The same weights at every call, up to rounding to `dtype`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = PretrainingModel(self.model, ObjectivesConfig(), load_pretrained_text=False)
        return model.to(self.device, dtype)


def mixed_durations(clips: int) -> tuple[float, ...]:
    """Seconds of a multiple of four clips: the quantiles of the mix in the module's docstring, without chance."""
    quarter = clips // 4
    middles = [(index + 0.5) / quarter for index in range(quarter)]
    even = [15.0 + 15.0 * share for share in middles]
    log_even = [math.exp(share * math.log(30.0)) for share in middles]
    return (*[10.0] * (2 * quarter), *even, *log_even)


def caption_length(clip: int) -> int:
    return 8 + 5 * clip % 15


def cases(settings: Settings) -> list[Case]:
    if settings.quick:
        model, clips = QUICK_MODEL, 4
    elif settings.device == "cpu":
        model, clips = CPU_MODEL, 8
    else:
        model, clips = PAPER_MODEL, 64
    dtypes = [torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])]
    scale = 0.2 if settings.quick else 1.0
    mixes = {"mixed": mixed_durations(clips), "equal": (10.0,) * clips}
    return [
        _case(f"{name} durations, {DTYPE_NAMES[dtype]}", Workload(durations, model, dtype, settings.device))
        for name, seconds in mixes.items()
        for durations in [tuple(scale * duration for duration in seconds)]
        for dtype in dtypes
    ]


def _case(name: str, workload: Workload) -> Case:
    samples = [round(seconds * workload.model.mel.sample_rate) for seconds in workload.durations]
    tokens = [workload.model.num_tokens(count) for count in samples]
    captions = [caption_length(clip) for clip in range(len(samples))]
    packed_flops = step_flops(tokens, captions, workload.model, padded=False)
    padded_flops = step_flops(tokens, captions, workload.model, padded=True)
    return Case(
        name=name,
        peers=(
            Peer("padded, SDPA", partial(_set_up, workload, _padded_forward)),
            Peer("packed", partial(_set_up, workload, _packed_forward)),
        ),
        baseline="padded, SDPA",
        reference=lambda: _losses_and_gradients(*_padded_forward(workload, torch.float64)),
        tolerance=TOLERANCES[workload.dtype],
        work={"audio tokens": sum(tokens), "useful GFLOP": packed_flops / 1e9},
        facts={
            "clips": len(tokens),
            "shortest (s)": min(workload.durations),
            "longest (s)": max(workload.durations),
            "audio tokens": sum(tokens),
            "padding share": 1 - sum(tokens) / (len(tokens) * max(tokens)),
            "caption padding share": 1 - sum(captions) / (len(captions) * max(captions)),
            "arithmetic saved": padded_flops / packed_flops,
        },
    )


Forward = Callable[[], dict[str, Tensor]]


def _packed_forward(workload: Workload, dtype: torch.dtype) -> tuple[PretrainingModel, Forward]:
    model, batch = workload.pretraining_model(dtype), workload.batch(dtype)
    return model, lambda: model(batch, TEACHER_TEMPERATURE)


def _padded_forward(workload: Workload, dtype: torch.dtype) -> tuple[PretrainingModel, Forward]:
    model = workload.pretraining_model(dtype)
    padded = PaddedPretrainingModel(model)
    batch = PaddedBatch.from_packed(workload.batch(dtype), workload.model)
    return model, lambda: padded(batch, TEACHER_TEMPERATURE)


def _set_up(workload: Workload, build: Callable[[Workload, torch.dtype], tuple[PretrainingModel, Forward]]) -> Run:
    model, forward = build(workload, workload.dtype)
    update = _Update(model)

    def step() -> None:
        forward()["loss"].backward()
        update()

    return Run(step=step, outputs=lambda: _losses_and_gradients(model, forward))


class _Update:
    """Clipping, AdamW on float32 weights and the teacher's average: what DeepSpeed does after the backward."""

    def __init__(self, model: PretrainingModel) -> None:
        self.optimizer = build_optimizer(model, OPTIMIZER)
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = OPTIMIZER.learning_rate  # in training the schedule's business
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
