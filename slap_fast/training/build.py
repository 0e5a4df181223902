"""Builds the parts of a run from its configuration and datasets: tokenizer, model, sampler and loader."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slap_fast.config.model import OBJECTIVES, ModelConfig
from slap_fast.config.recipe import DataConfig, ObjectivesConfig, Recipe, RecipeModelConfig, RunConfig
from slap_fast.config.saved_files import largest_token_id
from slap_fast.data.decoding import make_decoder
from slap_fast.data.format.remote import local_folder
from slap_fast.data.loading.dropped_clips import DropReport
from slap_fast.data.loading.loader import Loader
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.data.tokenizer import load_tokenizer
from slap_fast.errors import ModelError
from slap_fast.training.checkpoint.folder import newest_checkpoint, read_model_files
from slap_fast.training.compilation import compile_blocks
from slap_fast.training.distributed.process_group import Ranks
from slap_fast.training.frozen import freeze_parts
from slap_fast.training.initial_weights import WeightSource, same_tokens
from slap_fast.training.model import PretrainingModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_tokenizer(
    data: DataConfig, model: ModelConfig, source: WeightSource | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `data`, else of the initial model, the pretrained text encoder, or the first dataset.

    Raises:
        FileNotFoundError: the text encoder starts from scratch and the dataset has no tokenizer.
        ModelError: the initial model has no tokenizer.
    """
    if data.tokenizer is None and source is not None and source.vocab_size is not None:
        if source.tokenizer is None:
            raise ModelError(
                f"{source.files / 'tokenizer'} is missing: set data.tokenizer to the tokenizer that the model of "
                f"model.init_from={source.model.name} was trained with"
            )
        return source.tokenizer
    beside = local_folder(data.folders[0].folder) / "tokenizer"
    if data.tokenizer is None and model.text.pretrained is None and not beside.is_dir():
        raise FileNotFoundError(
            f"{beside} is missing: a text encoder from scratch needs a tokenizer. Run `slap-fast prepare` again, or "
            "set data.tokenizer to a folder"
        )
    return load_tokenizer(data.tokenizer or model.text.pretrained or beside)


def complete_model_config(
    model: ModelConfig,
    datasets: Mixture,
    tokenizer: Any,
    mel_statistics: tuple[float, float] | None = None,
    source: WeightSource | None = None,
) -> ModelConfig:
    """Fill in values that the datasets decide: the vocabulary size from scratch, and mel statistics left at 0 and 1.

    Args:
        mel_statistics: mean and standard deviation that the weights were trained with; None: those of the datasets.
    """
    model = model.architecture
    if source is not None and source.vocab_size is not None:
        vocabulary = source.vocab_size if same_tokens(source.tokenizer, tokenizer) else largest_token_id(tokenizer) + 1
        model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=vocabulary))
    elif model.text.pretrained is None:
        model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=len(tokenizer)))
    if (model.mel.mean, model.mel.std) == (0.0, 1.0):
        mean, std = mel_statistics or datasets.mel_statistics()
        model = dataclasses.replace(model, mel=dataclasses.replace(model.mel, mean=mean, std=std))
    return model


def saved_mel_statistics(checkpoints: Path) -> tuple[float, float] | None:
    """Mean and standard deviation of the log-mel values that the newest checkpoint was trained with."""
    found = newest_checkpoint(checkpoints)
    if found is None:
        return None
    try:
        mel = json.loads(read_model_files(*found)["config.json"])["mel"]
        return float(mel["mean"]), float(mel["std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # resuming will report the damage


def mel_statistics_notes(model: ModelConfig, complete: ModelConfig, datasets: Mixture) -> list[str]:
    """A message if the datasets' mel statistics are no longer those of the weights.

    Args:
        model: of the recipe.
        complete: `complete_model_config` of it.
    """
    mel = complete.mel
    initial = isinstance(model, RecipeModelConfig) and model.init_from is not None
    given = (model.mel.mean, model.mel.std) != (0.0, 1.0) and not initial
    if given or (mel.mean, mel.std) == (own := datasets.mel_statistics()):
        return []
    before = "as for the weights of model.init_from" if initial else "as before"
    return [
        f"log-mel values are normalized {before}, by mean {mel.mean:g} and deviation {mel.std:g}; those of the data "
        f"are {own[0]:g} and {own[1]:g} now"
    ]


def build_model(
    config: RunConfig, model_config: ModelConfig, tokenizer: Any, source: WeightSource | None = None
) -> PretrainingModel:
    """Build the model, with the same initial weights on every rank and at every ZeRO stage.

    With a `source`, the text tower has its architecture; `initial_weights.initialize` copies its weights.

    Raises:
        ConfigError: `training.compile` is set and there is no compiler.
        ModelError: the tokenizer has token ids beyond the text encoder's vocabulary.
    """
    text_hf_config = None if source is None else source.text_hf_config
    if text_hf_config is not None and text_hf_config.vocab_size != model_config.text.vocab_size:
        text_hf_config.vocab_size = model_config.text.vocab_size
        text_hf_config.pad_token_id = getattr(tokenizer, "pad_token_id", None)
    torch.manual_seed(config.recipe.schedule.seed)
    model = PretrainingModel(
        model_config,
        config.recipe.objectives,
        load_pretrained_text=source is None or source.vocab_size is None,
        text_hf_config=text_hf_config,
        contrastive_exchange=config.efficiency.training.contrastive_exchange,
    )
    vocabulary = model.student.vocab_size
    if tokenizer is not None and vocabulary is not None and (largest := largest_token_id(tokenizer)) >= vocabulary:
        raise ModelError(
            f"the tokenizer has a token of id {largest}, but the vocabulary of the text encoder "
            f"{model_config.text.pretrained or 'from scratch'} has {vocabulary}; they belong to different models: set "
            "data.tokenizer, or leave it out to use the encoder's own"
        )
    model.student.tokenizer = tokenizer
    freeze_parts(model, config.recipe.model.freeze)
    if config.efficiency.training.activation_checkpointing:
        checkpoint_activations(model)
    # Stage 3 puts hooks around every module inside a block, and each hook would be a graph break.
    if config.efficiency.training.compile and config.efficiency.training.zero_stage < 3:
        compile_blocks(model)
    return model.train()


def objective_notes(objectives: ObjectivesConfig) -> list[str]:
    """A message for each objective of weight 0, with the parts that the model lacks."""
    parts = {
        "contrastive": "no text tower, poolings and logit scale",
        "self_distillation": f"no teacher and prototypes{'' if objectives.masks_tokens else ', no token is masked'}",
        "caption": "no caption decoder",
    }
    return [f"objectives.{name}_weight=0: {parts[name]}" for name in OBJECTIVES if name not in objectives.active]


def checkpoint_activations(model: nn.Module) -> None:
    """Turn on activation checkpointing for each transformer block of the towers and the decoder."""
    for module in model.modules():
        # Newer versions of transformers deprecate the second name, older ones lack the first.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable = next((getattr(module, name) for name in names if hasattr(module, name)), None)
        if enable is not None:
            enable({"use_reentrant": False})
        elif hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True  # type: ignore[assignment]


def build_sampler(recipe: Recipe, datasets: Mixture) -> GlobalBatchSampler:
    """The sampler of the recipe's schedule."""
    return GlobalBatchSampler(
        datasets,
        batch_size=recipe.schedule.batch_size,
        seed=recipe.schedule.seed,
        max_duration=recipe.data.max_duration,
        crop_above_max_duration=recipe.data.crop_above_max_duration,
        shuffle_shards=recipe.data.shuffle_shards,
    )


def build_loader(
    config: RunConfig,
    datasets: Mixture,
    sampler: GlobalBatchSampler,
    model_config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks,
    steps: range,
) -> Loader:
    """The loader of this rank's batches in `steps`; unusable clips are listed in `dropped.jsonl` of the output."""
    recipe, loading = config.recipe, config.efficiency.loading
    pin_memory = ranks.device.type == "cuda"
    augmentation = recipe.augmentation
    if not recipe.objectives.masks_tokens:
        augmentation = dataclasses.replace(augmentation, masked_fraction=0.0)
    decoder = make_decoder(
        loading.decoder,
        loading.threads,
        # A rank's clips decoded in one batch are contiguous in memory, so packing needs no copy.
        max_batch_size=max(1, recipe.schedule.batch_size // ranks.world_size),
        sample_rate=model_config.mel.sample_rate,
        pin_memory=pin_memory,
        device=ranks.device,
    )
    return Loader(
        datasets,
        sampler,
        model_config,
        augmentation,
        tokenizer,
        decoder,
        seed=recipe.schedule.seed,
        start_step=steps.start,
        stop_step=steps.stop,
        rank=ranks.rank,
        world_size=ranks.world_size,
        prefetch=loading.prefetch,
        max_consecutive_failures=loading.max_consecutive_failures,
        pin_memory=pin_memory,
        report=DropReport(Path(config.efficiency.training.output) / "dropped.jsonl", start_step=steps.start),
    )
