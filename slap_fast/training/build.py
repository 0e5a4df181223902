"""From a configuration and a dataset to the model that the engine trains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import DataConfig, RunConfig
from slap_fast.config.saved_files import largest_token_id
from slap_fast.errors import ModelError
from slap_fast.training.checkpoint.folder import newest_checkpoint, read_model_files
from slap_fast.training.compilation import compile_blocks
from slap_fast.training.model import PretrainingModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slap_fast.data.sampling.mixture import Mixture


def build_tokenizer(data: DataConfig, model: ModelConfig) -> PreTrainedTokenizerBase:
    """`data.tokenizer`; else the pretrained text encoder's own; else the one beside the (first) dataset's shards.

    Raises:
        FileNotFoundError: the text encoder starts from scratch and the dataset has no tokenizer.
    """
    from slap_fast.data.format.remote import local_folder
    from slap_fast.data.tokenizer import load_tokenizer

    beside = local_folder(data.folders[0].folder) / "tokenizer"
    if data.tokenizer is None and model.text.pretrained is None and not beside.is_dir():
        raise FileNotFoundError(
            f"{beside} is missing: a text encoder from scratch needs a tokenizer. Run `slap-fast prepare` again, or "
            "set data.tokenizer to a folder"
        )
    return load_tokenizer(data.tokenizer or model.text.pretrained or beside)


def complete_model_config(
    model: ModelConfig, datasets: Mixture, tokenizer: Any, mel_statistics: tuple[float, float] | None = None
) -> ModelConfig:
    """Fill in what the datasets decide: the vocabulary from scratch, and mel statistics left at 0 and 1.

    Args:
        mel_statistics: mean and deviation that the weights are used to, where there are some; else the datasets' own.
    """
    if model.text.pretrained is None:
        model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=len(tokenizer)))
    if (model.mel.mean, model.mel.std) == (0.0, 1.0):
        mean, std = mel_statistics or datasets.mel_statistics()
        model = dataclasses.replace(model, mel=dataclasses.replace(model.mel, mean=mean, std=std))
    return model


def saved_mel_statistics(checkpoints: Path) -> tuple[float, float] | None:
    """Mean and deviation of the log-mel values in the newest checkpoint, to which its weights are used."""
    found = newest_checkpoint(checkpoints)
    if found is None:
        return None
    try:
        mel = json.loads(read_model_files(*found)["config.json"])["mel"]
        return float(mel["mean"]), float(mel["std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # resuming tells what is wrong with it


def build_model(config: RunConfig, model_config: ModelConfig, tokenizer: Any) -> PretrainingModel:
    """The same initial weights on every rank and at every ZeRO stage.

    Raises:
        ConfigError: the blocks shall be compiled, and there is no compiler.
        ModelError: the tokenizer has tokens that the text encoder does not know.
    """
    torch.manual_seed(config.recipe.schedule.seed)
    model = PretrainingModel(
        model_config,
        config.recipe.objectives,
        contrastive_exchange=config.efficiency.training.contrastive_exchange,
    )
    vocabulary = model.student.text_encoder.vocab_size
    if tokenizer is not None and (largest := largest_token_id(tokenizer)) >= vocabulary:
        raise ModelError(
            f"the tokenizer has a token of id {largest}, but the text encoder "
            f"{model_config.text.pretrained or 'from scratch'} knows {vocabulary}; they are of different models: set "
            "data.tokenizer, or leave it out to take the encoder's own"
        )
    model.student.tokenizer = tokenizer
    if config.efficiency.training.activation_checkpointing:
        checkpoint_activations(model)
    # Stage 3 has hooks around every module within a block, and each would end a compiled program.
    if config.efficiency.training.compile and config.efficiency.training.zero_stage < 3:
        compile_blocks(model)
    return model.train()


def checkpoint_activations(model: nn.Module) -> None:
    """Let each transformer block of the towers and the decoder keep its input only."""
    for module in model.modules():
        # Newer versions of transformers warn of the second name, older ones do not have the first.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable = next((getattr(module, name) for name in names if hasattr(module, name)), None)
        if enable is not None:
            enable({"use_reentrant": False})
        elif hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True  # type: ignore[assignment]
