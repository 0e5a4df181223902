"""Planner: memory and step time of every ZeRO stage and micro-batch size, and the fastest option that fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import RunConfig
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.models.flops import step_flops
from slap_fast.planning.footprint import Lengths, PassCost, embedding_cost, training_cost
from slap_fast.planning.memory import Memory, Parameters, ZeroLayout, memory
from slap_fast.planning.request import PlanRequest
from slap_fast.planning.step_time import Step, StepTime, step_time
from slap_fast.planning.workload import Workload, dataset_workload, web_mix
from slap_fast.training.build import build_tokenizer, checkpoint_activations, complete_model_config
from slap_fast.training.engine import resolve_precision
from slap_fast.training.frozen import freeze_parts
from slap_fast.training.initial_weights import find_source
from slap_fast.training.model import PretrainingModel

# Without a dataset: FLAC at 16 kHz and 16 bit as `slap-fast prepare --synthetic` writes it, 70 of it in seek tables.
FLAC_BYTES_PER_SECOND = 18_470.0
_HALVINGS = 7  # smallest micro-batch: the batch of a rank, halved so often
# Bytes of scores that the native distillation loss holds at a time, for student and teacher.
_SCORE_BYTES = 2 * 2**27


@dataclass(frozen=True)
class Option:
    """One way to train.

    Attributes:
        stage: ZeRO stage.
        micro_batch_size: clips; the batch of a rank if it is not split.
        checkpointed: with activation checkpointing.
        memory: of the tensors of a step.
        peak: bytes of a device, including the overhead of the process.
        fits: the peak is within the usable memory of the device.
        time: of a step.
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
        rank_batch_size: clips of a rank in a step.
        model_flops: of a rank's step, without recomputation.
        asked: the option that the recipe sets.
        recommended: the fastest option that fits; None if none does.
    """

    request: PlanRequest
    workload: Workload
    parameters: Parameters
    bf16: bool
    rank_batch_size: int
    model_flops: float
    options: tuple[Option, ...]
    asked: Option
    recommended: Option | None

    @property
    def best(self) -> Option:
        return self.recommended or self.asked


def make_plan(request: PlanRequest) -> Plan:
    """
    Raises:
        ConfigError: a setting that training does not accept.
        DatasetError: a folder of `data.train` is not a dataset.
    """
    config = request.config
    training = config.efficiency.training
    workload, model_config = _workload(request)
    bf16 = _in_bf16(request)
    rank_batch_size = config.recipe.schedule.batch_size // request.devices
    asked_size = min(rank_batch_size, training.micro_batch_size or rank_batch_size)
    sizes = sorted({asked_size, *(-(-rank_batch_size // 2**power) for power in range(_HALVINGS + 1))}, reverse=True)
    options = []
    model = _meta_model(config, model_config, bf16)
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_activations(model)
        costs = _PassCosts(request, model, workload, bf16=bf16, checkpointed=checkpointed)
        options += [_option(request, costs, stage, size) for size in sizes for stage in range(4)]
    asked = next(
        option
        for option in options
        if (option.stage, option.micro_batch_size, option.checkpointed)
        == (training.zero_stage, asked_size, training.activation_checkpointing)
    )
    fitting = [option for option in options if option.fits and _allowed(option, config)]
    lengths = costs.lengths(rank_batch_size)
    tokens = [model_config.num_tokens(count) for count in lengths.samples]
    return Plan(
        request,
        workload,
        costs.parameters,
        bf16,
        rank_batch_size,
        step_flops(
            model_config,
            tokens,
            lengths.captions,
            round(lengths.masked_fraction * sum(tokens)),
            config.recipe.objectives,
            frozen=config.recipe.model.freeze,
        ),
        tuple(options),
        asked,
        # Step times within 2 %, the resolution of this model, count as equal; then less memory is better.
        min(fitting, key=lambda option: (round(math.log(option.time.total) / 0.02), option.peak), default=None),
    )


class _PassCosts:
    """Costs of micro-batches of any size, from the model on the meta device."""

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
        self.rank_batch_size = request.config.recipe.schedule.batch_size // request.devices
        self.parameters = Parameters.of(model)
        device = "cpu" if request.device.is_cpu else "cuda"
        # Costs are linear in the number of clips, so two sizes are enough.
        self._min, self._max = -(-self.rank_batch_size // 2**_HALVINGS), self.rank_batch_size
        self._whole = self._at_both(lambda lengths: training_cost(model, lengths, device, accumulated=False))
        self._accumulated = self._at_both(lambda lengths: training_cost(model, lengths, device, accumulated=True))
        self._embedding: tuple[PassCost, PassCost] | None = None
        if model.needs_embeddings:
            self._embedding = self._at_both(lambda lengths: embedding_cost(model, lengths, device))

    def lengths(self, clips: int) -> Lengths:
        rate = self.model_config.mel.sample_rate
        samples = [max(1, round(float(seconds) * rate)) for seconds in self.workload.clips(clips)]
        tokens = min(self.workload.caption_tokens, self.model_config.text.max_length)
        return Lengths(samples, [max(2, tokens)] * clips, _masked_fraction(self.config))

    def training(self, clips: float, *, accumulated: bool) -> PassCost:
        return self._interpolate(self._accumulated if accumulated else self._whole, clips)

    def embedding(self, clips: float) -> PassCost | None:
        """None if no objective needs this pass."""
        return None if self._embedding is None else self._interpolate(self._embedding, clips)

    def _at_both(self, count: Callable[[Lengths], PassCost]) -> tuple[PassCost, PassCost]:
        smallest = count(self.lengths(self._min))
        return smallest, smallest if self._max == self._min else count(self.lengths(self._max))

    def _interpolate(self, costs: tuple[PassCost, PassCost], clips: float) -> PassCost:
        smallest, largest = costs
        if self._max == self._min:
            return smallest
        return smallest.interpolate(largest, (clips - self._min) / (self._max - self._min))


def _option(request: PlanRequest, costs: _PassCosts, stage: int, size: int) -> Option:
    config, model_config, training = request.config, costs.model_config, request.config.efficiency.training
    batch_size, accumulated = config.recipe.schedule.batch_size, size < costs.rank_batch_size
    layout = ZeroLayout(
        stage,
        request.devices,
        costs.bf16,
        accumulated,
        offload_optimizer=training.offload_optimizer and stage >= 1,
        offload_parameters=training.offload_parameters and stage == 3,
    )
    # Clips of the global batch are balanced over the ranks by length; those of micro-batches are not.
    margin = costs.workload.length_margin(size, size if accumulated else batch_size)
    rank_memory = memory(
        costs.parameters,
        layout,
        costs.training(size * margin, accumulated=accumulated),
        _loss_bytes(request, costs, size, accumulated),
    )
    lengths = costs.lengths(size)
    tokens = [model_config.num_tokens(count) for count in lengths.samples]
    step = Step(
        costs.training(size, accumulated=accumulated),
        costs.embedding(size) if accumulated else None,
        costs.rank_batch_size / size,
        tokens,
        lengths.captions,
        round(lengths.masked_fraction * sum(tokens)),
    )
    time = step_time(
        step,
        model_config,
        costs.parameters,
        layout,
        request.device,
        batch_size=batch_size,
        objectives=config.recipe.objectives,
        frozen=config.recipe.model.freeze,
        checkpointed=costs.checkpointed,
    )
    peak = rank_memory.peak + request.device.overhead.value
    limit = request.options.usable_memory * request.device.memory.value
    return Option(stage, size, costs.checkpointed, rank_memory, peak, peak <= limit, time)


def _loss_bytes(request: PlanRequest, costs: _PassCosts, size: int, accumulated: bool) -> float:
    """Bytes besides the activations: the batch, and the embeddings, exchanged tensors and buffers of the losses."""
    config, model_config, clips = request.config, costs.model_config, costs.rank_batch_size
    active = config.recipe.objectives.active
    element, width, head = 2 if costs.bf16 else 4, model_config.audio.width, model_config.prototype
    samples = clips * costs.workload.mean * model_config.mel.sample_rate
    masked = _masked_fraction(config) * model_config.num_tokens(round(samples / clips))
    batch = 4 * samples + 8 * clips * (masked + costs.workload.caption_tokens)
    if config.efficiency.loading.decoder == "gpu":
        # Waveforms of the batches ahead, and the files of the one that is being decoded.
        seconds = clips * costs.workload.mean
        batch += config.efficiency.loading.prefetch * 4 * samples + seconds * costs.workload.bytes_per_second
    gathers = request.devices > 1 and config.efficiency.training.contrastive_exchange == "gather"
    # Float32 text embeddings and their gradients.
    contrastive = 2 * 4 * width * (config.recipe.schedule.batch_size if gathers else 2 * clips)
    kept_embeddings = clips * 2 * width * (element + 4) if accumulated else 0.0
    kept_bottleneck = clips * masked * head.bottleneck * element if accumulated else 0.0
    scores = min(_SCORE_BYTES, 2 * 4 * size * masked * (head.prototypes + head.bottleneck))
    own = {"contrastive": contrastive + kept_embeddings, "self_distillation": kept_bottleneck + scores, "caption": 0.0}
    return batch + sum(own[objective] for objective in active)


def _masked_fraction(config: RunConfig) -> float:
    return config.recipe.augmentation.masked_fraction if config.recipe.objectives.masks_tokens else 0.0


def _meta_model(config: RunConfig, model_config: ModelConfig, bf16: bool) -> PretrainingModel:
    with torch.device("meta"):
        model = PretrainingModel(
            model_config,
            config.recipe.objectives,
            load_pretrained_text=False,
            contrastive_exchange=config.efficiency.training.contrastive_exchange,
        )
    freeze_parts(model, config.recipe.model.freeze)
    return model.train().to(torch.bfloat16 if bf16 else torch.float32)


def _allowed(option: Option, config: RunConfig) -> bool:
    """Offloading needs a minimal ZeRO stage."""
    training = config.efficiency.training
    return option.stage >= (3 if training.offload_parameters else 1 if training.offload_optimizer else 0)


def _in_bf16(request: PlanRequest) -> bool:
    if request.device.is_cpu:
        return resolve_precision(request.config, torch.device("cpu")) == "bf16"
    return request.config.efficiency.training.precision != "fp32"


def _workload(request: PlanRequest) -> tuple[Workload, ModelConfig]:
    """The lengths to train on, and the model with the dimensions that follow from the data."""
    recipe, options = request.config.recipe, request.options
    source = find_source(recipe.model.init_from) if recipe.model.init_from else None
    model_config = _as_pretrained(recipe.model.architecture, None if source is None else source.text_hf_config)
    if recipe.data.train:
        datasets = Mixture.open([(part.folder, part.weight) for part in recipe.data.folders])
        workload = dataset_workload(datasets, recipe.data, options.caption_tokens)
        if source is not None or recipe.model.text.pretrained is None:
            tokenizer = build_tokenizer(recipe.data, recipe.model, source)
            model_config = complete_model_config(model_config, datasets, tokenizer, source=source)
        datasets.release()
    else:
        workload = web_mix(recipe.data.max_duration, FLAC_BYTES_PER_SECOND, round(options.caption_tokens or 20))
    if options.seconds is not None:
        seconds = min(options.seconds, recipe.data.max_duration)
        workload = dataclasses.replace(
            workload, seconds=np.full_like(workload.seconds, seconds), origin="plan.seconds: all clips of one length"
        )
    if options.flac_bytes_per_second is not None:
        workload = dataclasses.replace(workload, bytes_per_second=options.flac_bytes_per_second)
    return workload, model_config


def _as_pretrained(model: ModelConfig, found: Any = None) -> ModelConfig:
    """`model` with the dimensions of its pretrained text encoder, if they are known.

    Args:
        found: transformers configuration of the text tower to start from; None: that of the pretrained text encoder, if
            it is a local folder.
    """
    if found is None:
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
