"""A small SLAP model with a tokenizer, for tests of saved, published and exported models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from slap_fast.config.model import OBJECTIVES
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.models.slap import SLAP
from slap_fast.ops import MelConfig
from tests.models.builders import TINY

TEXTS = ["a dog barks", "rain on the roof", "a", "bell"]


def tiny_slap(objectives: Sequence[str] = OBJECTIVES, *, mel: MelConfig = TINY.mel, layers: int = 3) -> SLAP:
    """With weights that are larger than initial ones, so that embeddings of clips differ."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300)
    config = dataclasses.replace(
        TINY,
        mel=mel,
        audio=dataclasses.replace(TINY.audio, layers=layers, global_every=layers),
        text=dataclasses.replace(TINY.text, vocab_size=len(tokenizer), max_length=40, layers=layers),
    )
    model = SLAP(config, objectives=objectives).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.tokenizer = tokenizer
    return model
