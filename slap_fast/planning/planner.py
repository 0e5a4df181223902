"""From a request to a plan: every ZeRO stage with every micro-batch, whether it fits, and how fast it would be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import RunConfig
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.models.flops import step_flops
from slap_fast.planning.footprint import Lengths, Passes, embedding_passes, training_passes
from slap_fast.planning.memory import Layout, Memory, Parameters, memory
from slap_fast.planning.request import PlanRequest
from slap_fast.planning.step_time import Step, StepTime, step_time
from slap_fast.planning.workload import Workload, of_datasets, web_mix
from slap_fast.training.build import build_tokenizer, checkpoint_activations, complete_model_config
from slap_fast.training.engine import resolve_precision
from slap_fast.training.model import PretrainingModel

# Of FLAC at 16 kHz and 16 bit, where there is no dataset: what `slap-fast prepare --synthetic` writes.
FLAC_BYTES_PER_SECOND = 18_400.0
_HALVINGS = 7
# Native losses hold so much of their scores at a time, once for the student and once for the teacher.
_SCORES = 2 * 2**27


@dataclass(frozen=True)
class Option:
    """One way to train.

    Attributes:
        micro_batch_size: clips; the rank's whole share of the batch where it is not taken in parts.
    """

    stage: int
    micro_batch_size: int
    checkpointed: bool
    memory: Memory
    peak: float
    fits: bool
    time: StepTime


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        share: clips of a rank in a step.
        useful: operations of a rank's step that training cannot do without.
        asked: what the recipe says as it stands.
        recommended: the fastest that fits; None if nothing does.
    """

    request: PlanRequest
    workload: Workload
    parameters: Parameters
    bf16: bool
    share: int
    useful: float
    options: tuple[Option, ...]
    asked: Option
    recommended: Option | None

    @property
    def best(self) -> Option:
        return self.recommended or self.asked


def make_plan(request: PlanRequest) -> Plan:
    """
    Raises:
        ConfigError: a setting that cannot be trained with.
        DatasetError: `data.train` names a folder that is there and is no dataset.
    """
    config = request.config
    workload, model_config = _workload(request)
    bf16 = _in_bf16(request)
    share = config.recipe.schedule.batch_size // request.devices
    asked_size = min(share, config.efficiency.training.micro_batch_size or share)
    sizes = sorted({asked_size, *(-(-share // 2**power) for power in range(_HALVINGS + 1))}, reverse=True)
    asked = config.efficiency.training
    options = []
    model = _model(config, model_config, bf16)
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_activations(model)
        runs = _Runs(request, model, workload, bf16=bf16, checkpointed=checkpointed)
        options += [_option(request, runs, stage, size) for size in sizes for stage in range(4)]
    current = next(
        option
        for option in options
        if (option.stage, option.micro_batch_size, option.checkpointed)
        == (asked.zero_stage, asked_size, asked.activation_checkpointing)
    )
    fitting = [option for option in options if option.fits and _allowed(option, config)]
    lengths = runs.lengths(share)
    tokens = [model_config.num_tokens(count) for count in lengths.samples]
    return Plan(
        request,
        workload,
        runs.parameters,
        bf16,
        share,
        step_flops(
            model_config,
            tokens,
            lengths.captions,
            round(lengths.masked_fraction * sum(tokens)),
            shared_pass=config.recipe.objectives.shared_pass,
        ),
        tuple(options),
        current,
        # Of two that differ by less than this count can tell, the one that takes less memory.
        min(fitting, key=lambda option: (round(math.log(option.time.total) / 0.02), option.peak), default=None),
    )


class _Runs:
    """What micro-batches of any size take, as the model on the meta device shows."""

    def __init__(
        self,
        request: PlanRequest,
        model: PretrainingModel,
        workload: Workload,
        *,
        bf16: bool,
        checkpointed: bool,
    ) -> None:
        self.config, self.model_config, self.workload = request.config, model.student.config, workload
        self.bf16, self.checkpointed = bf16, checkpointed
        self.share = share = request.config.recipe.schedule.batch_size // request.devices
        self.parameters = Parameters.of(model)
        self._model = model
        device = "cpu" if request.device.is_cpu else "cuda"
        # All that a pass takes grows evenly with its clips, so two sizes tell all.
        self._few, self._many = -(-share // 2**_HALVINGS), share
        self._whole = self._ends(lambda lengths: training_passes(self._model, lengths, device, in_parts=False))
        self._parts = self._ends(lambda lengths: training_passes(self._model, lengths, device, in_parts=True))
        self._embeddings = self._ends(lambda lengths: embedding_passes(self._model, lengths, device))

    def lengths(self, clips: int) -> Lengths:
        rate = self.model_config.mel.sample_rate
        samples = [max(1, round(float(seconds) * rate)) for seconds in self.workload.clips(clips)]
        tokens = min(self.workload.caption_tokens, self.model_config.text.max_length)
        return Lengths(samples, [max(2, tokens)] * clips, self.config.recipe.augmentation.masked_fraction)

    def training(self, clips: float, *, in_parts: bool) -> Passes:
        return self._at(self._parts if in_parts else self._whole, clips)

    def embeddings(self, clips: float) -> Passes:
        return self._at(self._embeddings, clips)

    def _ends(self, run: Callable[[Lengths], Passes]) -> tuple[Passes, Passes]:
        few = run(self.lengths(self._few))
        return few, few if self._many == self._few else run(self.lengths(self._many))

    def _at(self, ends: tuple[Passes, Passes], clips: float) -> Passes:
        few, many = ends
        return few if self._many == self._few else few.between(many, (clips - self._few) / (self._many - self._few))


def _option(request: PlanRequest, runs: _Runs, stage: int, size: int) -> Option:
    config, model_config, training = request.config, runs.model_config, request.config.efficiency.training
    batch_size, in_parts = config.recipe.schedule.batch_size, size < runs.share
    layout = Layout(
        stage,
        request.devices,
        runs.bf16,
        in_parts,
        offload_optimizer=training.offload_optimizer and stage >= 1,
        offload_parameters=training.offload_parameters and stage == 3,
    )
    # The whole batch is shared out evenly; a rank takes its micro-batches as they come.
    excess = runs.workload.excess(size, size if in_parts else batch_size)
    held = memory(
        runs.parameters, layout, runs.training(size * excess, in_parts=in_parts), _beside(request, runs, size, in_parts)
    )
    overhead, limit = request.device.overhead.value, request.options.usable_memory * request.device.memory.value
    lengths = runs.lengths(size)
    tokens = [model_config.num_tokens(count) for count in lengths.samples]
    step = Step(
        runs.training(size, in_parts=in_parts),
        runs.embeddings(size) if in_parts else None,
        runs.share / size,
        tokens,
        lengths.captions,
        round(lengths.masked_fraction * sum(tokens)),
    )
    time = step_time(
        step,
        model_config,
        runs.parameters,
        layout,
        request.device,
        batch_size=batch_size,
        shared_pass=config.recipe.objectives.shared_pass,
        checkpointed=runs.checkpointed,
        sinkhorn_iterations=config.recipe.objectives.sinkhorn_iterations,
    )
    peak = held.peak + overhead
    return Option(stage, size, runs.checkpointed, held, peak, peak <= limit, time)


def _beside(request: PlanRequest, runs: _Runs, size: int, in_parts: bool) -> float:
    """Bytes beside the activations: the batch, what the losses compare and exchange, and what they work on."""
    config, model_config, share = request.config, runs.model_config, runs.share
    element, width, head = 2 if runs.bf16 else 4, model_config.audio.width, model_config.prototype
    samples = share * runs.workload.mean * model_config.mel.sample_rate
    masked = config.recipe.augmentation.masked_fraction * model_config.num_tokens(round(samples / share))
    batch = 4 * samples + 8 * share * (masked + runs.workload.caption_tokens)
    gathers = request.devices > 1 and config.efficiency.training.contrastive_exchange == "gather"
    # Embeddings of captions in float32, and their gradients.
    contrastive = 2 * 4 * width * (config.recipe.schedule.batch_size if gathers else 2 * share)
    kept = share * (2 * width * (element + 4) + masked * head.bottleneck * element) if in_parts else 0.0
    scores = min(_SCORES, 2 * 4 * size * masked * (head.prototypes + head.bottleneck))
    return batch + contrastive + kept + scores


def _model(config: RunConfig, model_config: ModelConfig, bf16: bool) -> PretrainingModel:
    with torch.device("meta"):
        model = PretrainingModel(
            model_config,
            config.recipe.objectives,
            load_pretrained_text=False,
            contrastive_exchange=config.efficiency.training.contrastive_exchange,
        )
    return model.train().to(torch.bfloat16 if bf16 else torch.float32)


def _allowed(option: Option, config: RunConfig) -> bool:
    training = config.efficiency.training
    return option.stage >= (3 if training.offload_parameters else 1 if training.offload_optimizer else 0)


def _in_bf16(request: PlanRequest) -> bool:
    if request.device.is_cpu:
        return resolve_precision(request.config, torch.device("cpu")) == "bf16"
    return request.config.efficiency.training.precision != "fp32"


def _workload(request: PlanRequest) -> tuple[Workload, ModelConfig]:
    """What there is to train on, and the model with what that decides."""
    recipe, options = request.config.recipe, request.options
    model_config = _as_pretrained(recipe.model)
    if recipe.data.train:
        datasets = Mixture.open([(part.folder, part.weight) for part in recipe.data.folders])
        workload = of_datasets(datasets, recipe.data, options.caption_tokens)
        if recipe.model.text.pretrained is None:
            model_config = complete_model_config(model_config, datasets, build_tokenizer(recipe.data, recipe.model))
        datasets.release()
    else:
        workload = web_mix(recipe.data.max_duration, FLAC_BYTES_PER_SECOND, round(options.caption_tokens or 20))
    if options.seconds is not None:
        seconds = min(options.seconds, recipe.data.max_duration)
        workload = dataclasses.replace(
            workload, seconds=np.full_like(workload.seconds, seconds), origin="plan.seconds: every clip as long"
        )
    if options.flac_bytes_per_second is not None:
        workload = dataclasses.replace(workload, bytes_per_second=options.flac_bytes_per_second)
    return workload, model_config


def _as_pretrained(model: ModelConfig) -> ModelConfig:
    """With the dimensions of a pretrained text encoder that lies in a folder; of a name, those of the recipe hold."""
    if model.text.pretrained is None or not Path(model.text.pretrained).is_dir():
        return model
    from slap_fast.models.text_encoder import read_pretrained_config

    found = read_pretrained_config(model.text.pretrained)
    text = dataclasses.replace(
        model.text,
        vocab_size=found.vocab_size,
        width=found.hidden_size,
        layers=found.num_hidden_layers,
        heads=found.num_attention_heads,
        mlp_width=found.intermediate_size,
    )
    return dataclasses.replace(model, text=text)
