"""Gradient accumulation on one process; test_zero.py tests it on two ranks with DeepSpeed."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slap_fast.data.loading.batch import Batch
from slap_fast.training.accumulation import accumulate_gradients
from slap_fast.training.model import PretrainingModel
from tests.training import tiny
from tests.training.saved_memory import saved_memory

TEMPERATURE = 0.05


class PlainEngine:
    """The engine interface on one process, without DeepSpeed: only accumulates gradients."""

    def __init__(self, module: PretrainingModel) -> None:
        self.module = module
        self.boundaries: list[bool] = []

    def __call__(self, *inputs: Any, **call: Any) -> Any:
        return self.module(*inputs, **call)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundaries.append(is_boundary)

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def make(clips: int, *, shared_pass: bool = False) -> tuple[PretrainingModel, Batch]:
    config = tiny.run_config()
    recipe = config.recipe
    recipe = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, batch_size=clips))
    model = tiny.build(config)
    model.objectives = dataclasses.replace(model.objectives, shared_pass=shared_pass)
    return model, tiny.batch(dataclasses.replace(config, recipe=recipe), 0)


def at_once(model: PretrainingModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outputs = model(batch, TEMPERATURE)
    outputs["loss"].backward()
    return outputs, take_gradients(model)


def accumulated(model: PretrainingModel, batch: Batch, clips: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outputs = accumulate_gradients(PlainEngine(model), batch, TEMPERATURE, clips)
    return outputs, take_gradients(model)


def take_gradients(model: PretrainingModel) -> dict[str, Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def worst_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - value).norm() / value.norm()) for name, value in expected.items())


@pytest.mark.parametrize(("clips", "micro_batch_size", "shared_pass"), [(64, 2, False), (11, 4, False), (11, 3, True)])
def test_micro_batches_give_the_gradients_and_the_values_of_the_whole_batch(
    clips: int, micro_batch_size: int, shared_pass: bool
) -> None:
    model, batch = make(clips, shared_pass=shared_pass)
    outputs, expected = at_once(model, batch)
    own_outputs, gradients = accumulated(model, batch, micro_batch_size)
    assert len(expected) == sum(parameter.requires_grad for parameter in model.parameters())
    assert "student.logit_scale.delta" in expected
    assert worst_error(gradients, expected) < 1e-5
    assert own_outputs.keys() == outputs.keys()
    for name, value in outputs.items():
        torch.testing.assert_close(own_outputs[name], value.detach(), rtol=1e-5, atol=1e-6, msg=name)
        assert not own_outputs[name].requires_grad


def test_ranks_reduce_gradients_after_the_last_micro_batch_only() -> None:
    model, batch = make(7)
    engine = PlainEngine(model)
    accumulate_gradients(engine, batch, TEMPERATURE, 3)
    assert engine.boundaries == [False, False, True]


def test_dropout_is_the_same_in_both_passes() -> None:
    model, batch = make(6)
    dropout = nn.Dropout(0.5)
    embeddings: list[Tensor] = []
    model.student.text_encoder.register_forward_hook(lambda module, inputs, features: dropout(features))
    model.student.text_pooling.register_forward_hook(lambda module, inputs, pooled: embeddings.append(pooled.detach()))
    model.teacher_encoder.register_forward_hook(lambda module, inputs, features: dropout(features))

    accumulated(model, batch, 2)
    first, second = embeddings[:3], embeddings[3:]
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    dropout.eval()
    accumulated(model, batch, 2)
    assert not any(torch.equal(*pair) for pair in zip(first, embeddings[6:9], strict=True))

    # With one micro-batch and nothing random after the embeddings, dropout is as without accumulation.
    dropout.train()
    model.teacher_encoder._forward_hooks.clear()
    torch.manual_seed(3)
    _, expected = at_once(model, batch)
    torch.manual_seed(3)
    _, gradients = accumulated(model, batch, len(batch))
    assert worst_error(gradients, expected) < 1e-5


def test_activations_of_one_micro_batch_are_held_at_once() -> None:
    model, batch = make(32)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    with saved_memory() as whole:
        at_once(model, batch)
    with saved_memory() as accumulated_peak:
        accumulated(model, batch, 2)
    # Each use of a parameter counts too, independent of the number of clips.
    assert accumulated_peak.largest - 4 * parameters < whole.largest / 8


def test_between_the_passes_no_features_and_one_copy_of_the_prototypes_are_kept() -> None:
    model, batch = make(8)
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    model.student.audio_encoder.register_forward_hook(lambda module, inputs, out: outputs.append(weakref.ref(out)))
    model.teacher_head.register_forward_hook(lambda module, inputs, out: outputs.append(weakref.ref(out[1])))

    def count(module: nn.Module, inputs: object) -> None:
        alive.append(sum(output() is not None for output in outputs))

    model.student.audio_encoder.register_forward_pre_hook(count)
    accumulated(model, batch, 2)
    # Call 4 of the encoder, after four micro-batches, is the first of the second pass.
    assert alive[4] == 1


def test_a_loss_that_is_not_finite_shows_in_the_outputs_and_in_the_gradients() -> None:
    model, batch = make(5)
    outputs, gradients = accumulated(model, tiny.poisoned(batch), 2)
    assert not outputs["loss"].isfinite()
    assert not outputs["contrastive"].isfinite()
    assert not all(gradient.isfinite().all() for gradient in gradients.values())
