"""Recipes and overrides: what is read, what is refused, and how helpful the message is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from slap_fast.config.loading import RECIPES, ConfigError, config_from_arguments, load_run_config, to_yaml
from slap_fast.config.recipe import Recipe, RunConfig


def test_the_defaults_are_the_paper_recipe() -> None:
    assert load_run_config("paper").recipe == Recipe()


def test_the_paper_recipe_lists_every_key_in_the_order_of_the_dataclasses() -> None:
    def leaves(section: Any, prefix: str = "") -> list[str]:
        if not isinstance(section, dict):
            return [prefix]
        return [leaf for key, value in section.items() for leaf in leaves(value, f"{prefix}.{key}")]

    listed = leaves(yaml.safe_load((RECIPES / "paper.yaml").read_text()))
    assert listed == leaves(yaml.safe_load(to_yaml(RunConfig())))
    assert len(listed) > 100


def test_an_override_is_assigned_to_its_section_with_its_type() -> None:
    config = config_from_arguments(
        [
            "--local_rank=1",
            "recipe=quickstart",
            "training.zero_stage=2",
            "training.stop_after=null",
            "training.resume=false",
            "optimizer.learning_rate=3e-4",
            "optimizer.gradient_clipping=2",
            "optimizer.betas=[0.8, 0.9]",
            "model.text.pretrained=null",
            "model.audio.layers=2",
            "data.train=123",
            "data.tokenizer=456",
            "schedule.steps=1e3",
        ]
    )
    training, recipe = config.efficiency.training, config.recipe
    assert (training.zero_stage, training.stop_after, training.resume) == (2, None, False)
    assert recipe.optimizer.learning_rate == 3e-4
    assert (recipe.optimizer.gradient_clipping, recipe.optimizer.betas) == (2.0, (0.8, 0.9))
    assert isinstance(recipe.optimizer.gradient_clipping, float)
    assert (recipe.model.text.pretrained, recipe.model.audio.layers) == (None, 2)
    assert (recipe.data.train, recipe.data.tokenizer, recipe.schedule.steps) == ("123", "456", 1000)


def test_data_train_is_one_folder_or_several_with_weights() -> None:
    def folders(text: str) -> list[tuple[str, float]]:
        data = load_run_config("quickstart", [f"data.train={text}"]).recipe.data
        return [(part.folder, part.weight) for part in data.folders]

    assert folders("data/train") == [("data/train", 1.0)]
    assert folders("a, b: {c") == [("a, b: {c", 1.0)]
    assert folders("[{folder: a, weight: 2}, {folder: b/c, weight: 0.5}]") == [("a", 2.0), ("b/c", 0.5)]


@pytest.mark.parametrize("recipe", ["paper", "quickstart"])
def test_a_configuration_survives_a_round_trip_through_yaml(recipe: str, tmp_path: Path) -> None:
    mixture = "data.train=[{folder: a, weight: 2}, {folder: b, weight: 1}]"
    config = load_run_config(
        recipe, ["training.stop_after=7", "optimizer.eps=1e-9", "training.output=a: 'b' # c", mixture]
    )
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config))
    assert load_run_config(str(path)) == config


def test_keys_and_sections_missing_from_a_file_keep_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("recipe:\n  optimizer:\n    learning_rate: 1e-3\n  schedule:\n")
    expected = dataclasses.replace(load_run_config("paper").recipe.optimizer, learning_rate=1e-3)
    assert load_run_config(str(path)).recipe.optimizer == expected


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("training.zero_stge=1", ["argument 'training.zero_stge=1'", "did you mean 'training.zero_stage'?"]),
        ("zero_stage=1", ["did you mean 'training.zero_stage'?"]),
        ("optimizer.zero_stage=1", ["did you mean 'training.zero_stage'?"]),
        ("trainng.output=x", ["did you mean 'training.output'?"]),
        ("optimizer.lr=1", ["did you mean 'optimizer.learning_rate'?"]),
        ("model.audio.layer=1", ["did you mean 'model.audio.layers'?"]),
        ("optimizer=1", ["'optimizer' is a section", "optimizer.learning_rate"]),
        ("training.micro_batch_size=0", ["in training: micro_batch_size is 0", "out of range"]),
        ("training.zero_stage=4", ["training.zero_stage is 4", "0, 1, 2, 3"]),
        ("training.precision=bf61", ["did you mean 'bf16'?"]),
        ("training.resume=perhaps", ["must be true or false"]),
        ("schedule.steps=1.5", ["schedule.steps is 1.5", "whole number"]),
        ("schedule.steps=true", ["schedule.steps is True", "whole number"]),
        ("schedule.steps=null", ["schedule.steps is None", "whole number"]),
        ("schedule.steps=.inf", ["whole number"]),
        ("optimizer.learning_rate=.nan", ["finite number"]),
        ("optimizer.betas=[0.9]", ["list of 2 values"]),
        ("optimizer.betas=[0.9, 1.0]", ["in optimizer: betas is (0.9, 1.0)", "out of range"]),
        ("schedule.steps=0", ["in schedule: steps is 0"]),
        ("model.audio.heads=7", ["in model.audio", "audio.heads (7)"]),
        ("model.mel.n_mels=60", ["in model", "mel.n_mels (60)"]),
        ("data.train=[a, b]", ["data.train[0] is 'a'; it must be {folder: ..., weight: ...}"]),
        ("data.train=[{folder: a}]", ["data.train[0] is {'folder': 'a'}", "weight: ..."]),
        ("data.train=[{folder: a, weigth: 1}]", ["data.train[0]", "{folder: ..., weight: ...}"]),
        ("data.train=[{folder: a, weight: much}]", ["data.train[0].weight is 'much'", "finite number"]),
        ("data.train=[{folder: 3, weight: 1}]", ["data.train[0].folder is 3", "text"]),
        ("data.train=[{folder: a, weight: 0}]", ["in data.train[0]: weight is 0.0", "out of range"]),
        ("data.train=[]", ["in data", "list at least one"]),
        ("data.train=[{folder: a, weight: 1}, {folder: a, weight: 2}]", ["['a', 'a']", "each once"]),
        ("data.train=[{folder: a", ["cannot read the value"]),
        ("data.shuffle_shards=0", ["in data: shuffle_shards is 0"]),
        ("evaluation.zero_shot=esc50", ["in evaluation: metric is 'r1', which needs evaluation.dataset"]),
        ("optimizer.betas=[0.9", ["cannot read the value"]),
        ("model.freeze=text_encoder", ["model.freeze is 'text_encoder'; it must be a list, such as [text_encoder]"]),
        ("model.freeze=[text_encodr]", ["model.freeze[0] is 'text_encodr'", "did you mean 'text_encoder'?"]),
        ("model.freeze=[logit_scale, logit_scale]", ["freeze lists logit_scale, logit_scale; list each part once"]),
        ("optimizer.rate_multipliers.text=2", ["did you mean 'optimizer.rate_multipliers.text_encoder'?"]),
        ("optimizer.rate_multipliers.text_encoder=0", ["text_encoder is 0.0", "use model.freeze=[text_encoder]"]),
        ("optimizer.layer_decay=1.5", ["in optimizer: layer_decay is 1.5"]),
        ("model.init_from=", ["'model.init_from=': no value; write model.init_from=null for none"]),
        ("--zero_stage", ["section.key=value"]),
    ],
)
def test_the_message_for_a_bad_override_names_the_mistake_and_the_fix(argument: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_run_config("quickstart", [argument])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("recipe:\n  optimiser:\n    learning_rate: 1\n", "unknown key 'optimiser'; did you mean 'optimizer."),
        ("recipe:\n  optimizer:\n    learning_rte: 1\n", "did you mean 'optimizer.learning_rate'?"),
        ("recipes:\n  optimizer: {}\n", "unknown top-level section 'recipes'"),
        ("efficiency:\n  training:\n    zero_stage: two\n", "training.zero_stage is 'two'"),
        ("recipe:\n  optimizer: 3\n", "optimizer must be a mapping"),
        ("recipe: [\n", "cannot read the recipe"),
        ("- a\n", "must be a mapping"),
    ],
)
def test_the_message_for_a_bad_file_names_the_file_and_the_key(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_run_config(str(path))
    assert part in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no recipe"),
        (["recipe=paper", "recipe=quickstart"], "2 recipe= arguments"),
        (["recipe=quikstart"], "did you mean 'quickstart'?"),
        (["recipe=missing/file.yaml"], "neither a recipe nor a file"),
    ],
)
def test_exactly_one_existing_recipe_is_required(arguments: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part.replace("?", r"\?")):
        config_from_arguments(arguments)


def test_freezing_what_is_not_built_or_everything_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"lists caption_decoder, .* because objectives.caption_weight is 0; take it"):
        load_run_config("contrastive", ["model.freeze=[caption_decoder]"])
    parts = "audio_encoder, text_encoder, audio_pooling, text_pooling, logit_scale"
    with pytest.raises(ConfigError, match=f"lists every part of the model .{parts}., so nothing is trained"):
        load_run_config("contrastive", [f"model.freeze=[{parts}]"])
