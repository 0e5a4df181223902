"""Objectives of weight 0: their parts are not built, run, communicated, logged or saved, and the rest is unchanged."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from slap_fast import cli
from slap_fast.config.loading import ConfigError, load_run_config
from slap_fast.config.model import OBJECTIVES
from slap_fast.config.recipe import ObjectivesConfig, RunConfig
from slap_fast.training.accumulation import accumulate_gradients
from slap_fast.training.checkpoint.compatibility import objective_difference
from slap_fast.training.model import PretrainingModel
from tests.training import tiny
from tests.training.ranks import finish, start_program, tail
from tests.training.test_accumulation import PlainEngine
from tests.training.tiny_run import write_dataset, write_recipe

COMBINATIONS = [chosen for chosen in product((0.0, 1.0), repeat=3) if 0 < sum(chosen) < 3]


def objectives(weights: tuple[float, ...], **settings: Any) -> ObjectivesConfig:
    settings |= {f"{name}_weight": weight for name, weight in zip(OBJECTIVES, weights, strict=True)}
    return ObjectivesConfig(**settings)


def gradients(model: PretrainingModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("shared_pass", [False, True])
@pytest.mark.parametrize("weights", COMBINATIONS)
def test_gradients_are_those_of_a_model_with_all_parts_and_the_same_weights(
    weights: tuple[float, ...], shared_pass: bool
) -> None:
    config, chosen = tiny.run_config(), objectives(weights, shared_pass=shared_pass)
    everything, batch = tiny.build(config), tiny.batch(config, 0)
    everything.objectives = chosen
    expected = everything(batch, 0.05)
    expected["loss"].backward()

    model = PretrainingModel(config.recipe.model, chosen)
    model.load_state_dict({name: everything.state_dict()[name] for name in model.state_dict()})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    outputs = model(batch, 0.05)
    outputs["loss"].backward()
    assert gradients(model).keys() == trained
    for name, gradient in gradients(everything).items():
        assert torch.equal(gradients(model)[name], gradient) if name in trained else not gradient.any(), name
    assert {name for name in OBJECTIVES if name in outputs} == set(chosen.active)
    assert all(torch.equal(value, expected[name]) for name, value in outputs.items())

    model.zero_grad()
    accumulated = accumulate_gradients(PlainEngine(model), batch, 0.05, 2)
    assert accumulated.keys() == outputs.keys()
    for name, gradient in gradients(model).items():
        assert float((gradient - gradients(everything)[name]).norm() / gradient.norm()) < 1e-5, name


@pytest.mark.parametrize("weights", COMBINATIONS)
def test_only_the_parts_of_the_objectives_are_built(weights: tuple[float, ...]) -> None:
    model = PretrainingModel(tiny.model_config(), objectives(weights))
    contrastive, distillation, caption = (weight > 0 for weight in weights)
    student = model.student
    parts = {
        "contrastive": (student.text_encoder, student.audio_pooling, student.text_pooling, student.logit_scale),
        "self_distillation": (model.student_head, model.teacher_encoder, model.teacher_head),
        "caption": (student.caption_decoder,),
    }
    for present, found in zip((contrastive, distillation, caption), parts.values(), strict=True):
        assert [part is not None for part in found] == [present] * len(found)
    assert bool(list(model.teacher_pairs())) == distillation
    assert student.audio_encoder.mask_token.requires_grad == distillation


def test_a_checkpoint_of_other_objectives_is_described_by_the_keys_to_restore() -> None:
    def names(weights: tuple[float, ...]) -> list[str]:
        return [name for name, _ in PretrainingModel(tiny.model_config(), objectives(weights)).named_parameters()]

    everything, contrastive = names((1.0, 1.0, 0.5)), names((1.0, 0.0, 0.0))
    assert objective_difference(everything, everything) is None
    has = "it has the parts of self_distillation, and this run has objectives.self_distillation_weight=0; it has the "
    assert (objective_difference(everything, contrastive) or "").startswith(has)
    lacks = "it lacks the parts of contrastive, and this run has objectives.contrastive_weight above 0"
    assert objective_difference(names((0.0, 1.0, 0.0)), names((1.0, 1.0, 0.0))) == lacks


def test_what_cannot_be_trained_or_evaluated_is_an_error_that_names_the_keys() -> None:
    off = [f"objectives.{name}_weight=0" for name in OBJECTIVES]
    with pytest.raises(ConfigError, match=r"contrastive_weight, self_distillation_weight, caption_weight are all 0"):
        load_run_config("quickstart", off)
    for key in ("dataset", "zero_shot"):
        arguments = [off[0], f"evaluation.{key}=folder", "evaluation.metric=" + ("r1" if key == "dataset" else key)]
        with pytest.raises(ConfigError, match=rf"evaluation.{key} is 'folder', but objectives.contrastive_weight is 0"):
            load_run_config("quickstart", arguments)


def test_a_run_of_one_objective_logs_saves_and_exports_only_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    dataset = write_dataset(tmp_path / "source", tmp_path / "data")
    recipe, output = write_recipe(tmp_path / "tiny.yaml", steps=2, precision="bf16", zero_stage=3), tmp_path / "run"
    arguments = [f"recipe={recipe}", f"data.train={dataset}", f"training.output={output}"]
    arguments += [f"objectives.{name}_weight=0" for name in OBJECTIVES[1:]]
    log = tmp_path / "log.txt"
    assert finish([start_program("slap_fast.train", arguments, log)], log) == [0], tail(log)
    assert "objectives.caption_weight=0: no caption decoder" in log.read_text()
    assert "objectives.self_distillation_weight=0: no teacher and prototypes, no token is masked" in log.read_text()
    (first, last) = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert first["loss"] == first["contrastive"] > 0
    absent = {"caption", "self_distillation", "teacher_agreement", "prototype_entropy", "ema_momentum"}
    assert not last.keys() & {*absent, "teacher_temperature", "grad_norm/caption_decoder"}
    assert last["grad_norm/text_encoder"] > 0

    checkpoint = output / "checkpoints" / "step-00000002"
    assert cli.main(["export", str(checkpoint), "--out", str(tmp_path / "exported")]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "exported" / name).read_bytes() == (output / "model" / name).read_bytes()
    # The message comes before audio is read: this file cannot be.
    (broken := tmp_path / "broken.wav").write_text("not audio")
    capsys.readouterr()
    assert cli.main(["caption", str(output / "model"), str(broken), "--quiet"]) != 0
    (message,) = capsys.readouterr().err.splitlines()
    assert "this model has no caption decoder, because it was trained with objectives.caption_weight=0" in message


def test_masks_of_the_spectrogram_do_not_depend_on_the_objectives() -> None:
    config = tiny.run_config()
    unmasked = dataclasses.replace(config.recipe.augmentation, masked_fraction=0.0)
    other: RunConfig = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, augmentation=unmasked))
    one, two = tiny.batch(config, 3), tiny.batch(other, 3)
    assert one.masked.total > 0 == two.masked.total
    assert torch.equal(one.time_masked, two.time_masked)
    assert torch.equal(one.mel_masked, two.mel_masked)


def test_captions_in_the_loop_need_a_dataset_and_the_caption_objective() -> None:
    wrong = {
        r"captions is true, which needs evaluation\.dataset": ["evaluation.captions=true"],
        r"metric is 'cider_d', which needs evaluation\.captions=true": [
            "evaluation.dataset=a",
            "evaluation.metric=cider_d",
        ],
        r"objectives\.caption_weight is 0, so there is no caption decoder": [
            "objectives.caption_weight=0",
            "evaluation.dataset=a",
            "evaluation.captions=true",
        ],
    }
    for message, arguments in wrong.items():
        with pytest.raises(ConfigError, match=message):
            load_run_config("quickstart", arguments)
    alone = ["objectives.contrastive_weight=0", "evaluation.dataset=a", "evaluation.captions=true"]
    load_run_config("quickstart", [*alone, "evaluation.metric=cider_d"])
    with pytest.raises(ConfigError, match=r"evaluation\.dataset is 'a', but objectives\.contrastive_weight is 0"):
        load_run_config("quickstart", alone)
