"""The recipes of the package: each loads and plans, and an ablation differs from the paper's recipe in one key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from slap_fast.config.loading import RECIPES, ConfigError, load_run_config, to_yaml
from slap_fast.planning.planner import make_plan
from slap_fast.planning.request import parse_request

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# Small, so that planning is quick.
SMALL = ["model.audio.layers=3", "model.text.layers=1", "model.caption.layers=1", "schedule.batch_size=1"]


def _flat(recipe: str) -> dict[str, Any]:
    def leaves(section: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(section, dict):
            return {prefix[1:]: section}
        return {key: leaf for name, value in section.items() for key, leaf in leaves(value, f"{prefix}.{name}").items()}

    return leaves(yaml.safe_load(to_yaml(load_run_config(recipe))))


def _differences(recipe: str, base: str) -> dict[str, Any]:
    there = _flat(base)
    return {key: value for key, value in _flat(recipe).items() if value != there[key]}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_and_has_an_output_folder_of_its_own(name: str) -> None:
    assert load_run_config(name).efficiency.training.output == f"runs/{name}"


@pytest.mark.parametrize("name", ["contrastive", "finetune-clotho", "public-small"])
def test_a_recipe_plans_without_network_and_data(name: str) -> None:
    plan = make_plan(parse_request([f"recipe={name}", "devices=1", "device=a100", *SMALL]))
    assert plan.recommended is not None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ablation-no-self-distillation", {"recipe.objectives.self_distillation_weight": 0.0}),
        ("ablation-no-caption", {"recipe.objectives.caption_weight": 0.0}),
        ("ablation-no-local-attention", {"recipe.model.audio.global_every": 1}),
    ],
)
def test_an_ablation_differs_from_the_paper_in_one_key(name: str, change: dict[str, Any]) -> None:
    assert _differences(name, "paper") == change | {"efficiency.training.output": f"runs/{name}"}


def test_the_contrastive_baseline_is_the_paper_with_one_loss() -> None:
    assert load_run_config("contrastive").recipe.objectives.active == ("contrastive",)
    changed = {"recipe.objectives.caption_weight", "recipe.objectives.self_distillation_weight"}
    assert set(_differences("contrastive", "paper")) == changed | {"efficiency.training.output"}


@pytest.mark.parametrize("name", ["finetune-audiocaps", "finetune-clotho"])
def test_a_recipe_for_fine_tuning_gives_no_dimension_of_the_model(name: str) -> None:
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert content["recipe"]["model"] == {"init_from": ""}
    assert "base" not in content


def test_a_base_is_a_recipe_of_the_package_or_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "first.yaml").write_text("base: quickstart\nrecipe: {schedule: {steps: 7}}\n")
    (tmp_path / "second.yaml").write_text("base: own/first.yaml\nrecipe: {schedule: {batch_size: 3}}\n")
    config = load_run_config(str(tmp_path / "second.yaml"), ["schedule.seed=5"])
    schedule = config.recipe.schedule
    assert (schedule.steps, schedule.batch_size, schedule.seed) == (7, 3, 5)
    assert config.recipe.model == load_run_config("quickstart").recipe.model


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("base: papr", "base=papr: neither a recipe nor a file; did you mean 'paper'?"),
        ("base: [paper]", "base is ['paper']; it must be the name or path of a recipe"),
        ("base: own.yaml", "recipes that are the base of each other"),
        ("base: other.yaml", "recipes that are the base of each other"),
    ],
)
def test_an_unknown_base_and_a_circle_are_errors(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text + "\n")
    (tmp_path / "other.yaml").write_text("base: own.yaml\n")
    with pytest.raises(ConfigError) as error:
        load_run_config(str(path))
    assert part in str(error.value)
    assert str(path) in str(error.value)
