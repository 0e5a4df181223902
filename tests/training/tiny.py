"""The smallest real model, run configuration and batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from slap_fast.config.model import (
    AudioEncoderConfig,
    CaptionDecoderConfig,
    ModelConfig,
    PrototypeHeadConfig,
    TextEncoderConfig,
)
from slap_fast.config.recipe import (
    Efficiency,
    LoadingConfig,
    OptimizerConfig,
    Recipe,
    RecipeModelConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from slap_fast.data.loading.augmentation import MaskSampler
from slap_fast.data.loading.batch import Batch
from slap_fast.data.loading.collate import LoadedClip, collate
from slap_fast.training.frozen import freeze_parts
from slap_fast.training.model import PretrainingModel

VOCABULARY = 37
BATCH_SIZE = 6


def model_config(width: int = 16) -> ModelConfig:
    return ModelConfig(
        audio=AudioEncoderConfig(width=width, layers=3, heads=2, mlp_width=24, window_columns=2, pooling_heads=2),
        text=TextEncoderConfig(
            pretrained=None,
            vocab_size=VOCABULARY,
            width=width,
            layers=2,
            heads=2,
            mlp_width=24,
            max_length=16,
            pooling_heads=2,
        ),
        caption=CaptionDecoderConfig(width=width, layers=1, heads=2, mlp_width=24),
        prototype=PrototypeHeadConfig(prototypes=20, hidden=24, bottleneck=8),
    )


def run_config(
    output: Path | str = "",
    *,
    zero_stage: Any = 0,
    precision: Any = "fp32",
    width: int = 16,
    clipping: float = 1.0,
    micro_batch_size: int | None = None,
    exchange: Any = "gather",
    batch_size: int = BATCH_SIZE,
    async_checkpoints: bool = True,
) -> RunConfig:
    return RunConfig(
        recipe=Recipe(
            model=RecipeModelConfig(**vars(model_config(width))),
            optimizer=OptimizerConfig(learning_rate=3e-3, gradient_clipping=clipping),
            schedule=ScheduleConfig(steps=20, warmup_steps=2, batch_size=batch_size, ema_momentum=0.9),
        ),
        efficiency=Efficiency(
            training=TrainingConfig(
                output=str(output),
                zero_stage=zero_stage,
                precision=precision,
                micro_batch_size=micro_batch_size,
                contrastive_exchange=exchange,
                async_checkpoints=async_checkpoints,
                timeout=60.0,
            ),
            loading=LoadingConfig(),
        ),
    )


def build(config: RunConfig, seed: int = 0) -> PretrainingModel:
    torch.manual_seed(seed)
    model = PretrainingModel(
        config.recipe.model,
        config.recipe.objectives,
        contrastive_exchange=config.efficiency.training.contrastive_exchange,
    )
    freeze_parts(model, config.recipe.model.freeze)
    return model


def changed(config: RunConfig, **sections: Any) -> RunConfig:
    """The configuration with other values in sections of its recipe: `changed(config, model={"freeze": (...)})`."""
    replaced = {name: dataclasses.replace(getattr(config.recipe, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, **replaced))


def batch(config: RunConfig, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """Every `world_size`-th clip of the step's global batch."""
    generator = torch.Generator().manual_seed(1000 + step)
    masks = MaskSampler(config.recipe.augmentation, seed=0)
    clips = []
    for position in range(config.recipe.schedule.batch_size):
        samples = int(torch.randint(4000, 12_000, (), generator=generator))
        words = int(torch.randint(3, 9, (), generator=generator))
        clips.append(
            LoadedClip(
                clip=100 * step + position,
                waveform=torch.rand(samples, generator=generator) - 0.5,
                input_ids=torch.randint(5, VOCABULARY, (words,), generator=generator).tolist(),
            )
        )
    return collate(clips[rank::world_size], config.recipe.model, masks, step)


def poisoned(batch: Batch) -> Batch:
    """The batch with a NaN in its first clip."""
    waveform = batch.waveform.clone()
    waveform[10] = float("nan")
    return dataclasses.replace(batch, waveform=waveform)


class WordTokenizer:
    """One token per word, between a start and an end token."""

    def __call__(self, texts: list[str], **_truncation: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1, *(5 + len(word) % 30 for word in text.split()), 2] for text in texts]}

    def save_pretrained(self, folder: Path) -> None:
        """Writes nothing: no test reads it."""
