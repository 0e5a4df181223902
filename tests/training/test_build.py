from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from slap_fast.config.recipe import RunConfig
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.errors import ModelError
from slap_fast.training.build import build_model
from tests.training import tiny
from tests.training.saved_memory import saved_memory


def checkpointing(config: RunConfig) -> RunConfig:
    training = dataclasses.replace(config.efficiency.training, activation_checkpointing=True)
    return dataclasses.replace(config, efficiency=dataclasses.replace(config.efficiency, training=training))


def test_activation_checkpointing_saves_memory_and_changes_no_gradient() -> None:
    config = tiny.run_config()
    batch = tiny.batch(config, 0)
    models = [build_model(each, config.recipe.model, None) for each in (config, checkpointing(config))]
    peaks = []
    for model in models:
        with saved_memory() as peak:
            loss = model(batch, 0.05)["loss"]
            peaks.append(peak.now)
            loss.backward()
    assert peaks[1] < 0.6 * peaks[0]
    for (name, parameter), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if parameter.requires_grad:
            torch.testing.assert_close(other.grad, parameter.grad, msg=name)


def test_activation_checkpointing_recomputes_every_block() -> None:
    config = tiny.run_config()
    model = build_model(checkpointing(config), config.recipe.model, None)
    # Hooks on a projection inside each block: transformers does not recompute the hooks of the block itself.
    inner = {name: module for name, module in model.student.named_modules() if name.endswith((".mlp.down", ".mlp.Wo"))}
    calls = dict.fromkeys(inner.values(), 0)

    def count(module: nn.Module, inputs: object) -> None:
        calls[module] += 1

    for module in inner.values():
        module.register_forward_pre_hook(count)
    loss = model(tiny.batch(config, 0), 0.05)["loss"]
    forward = dict(calls)
    loss.backward()
    assert len(inner) == 3 + 2 + 1
    assert all(calls[module] == 2 * forward[module] > 0 for module in inner.values()), calls


def test_a_tokenizer_with_ids_beyond_the_vocabulary_of_the_text_encoder_is_an_error() -> None:
    config = tiny.run_config()
    tokenizer = train_tokenizer(["a dog barks"], 300)
    with pytest.raises(ModelError, match=r"token of id \d+, but the vocabulary of the text encoder .* has 37"):
        build_model(config, config.recipe.model, tokenizer)
