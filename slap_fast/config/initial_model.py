"""Initial model of a run: the architecture that `model.init_from` brings into a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slap_fast.config.model import OBJECTIVES, ModelConfig, model_config_from_dict
from slap_fast.config.saved_files import read_json_object
from slap_fast.errors import ModelError, SlapFastError


class ConfigError(SlapFastError, ValueError):
    """An invalid recipe or argument; the message names the file or argument, the key, and what is valid."""


# Keys that the weights of a part depend on, and the objective that adds the part. Another number of heads fits the
# shapes too, but not the weights.
_FIXED = {
    **dict.fromkeys(
        (f"audio.{key}" for key in ("patch_frames", "patch_mels", "width", "layers", "heads", "mlp_width")), None
    ),
    **dict.fromkeys(
        (f"{tower}.{key}" for tower in ("audio", "text") for key in ("pooling_heads", "pooling_mlp_ratio")),
        "contrastive",
    ),
    **dict.fromkeys((f"text.{key}" for key in ("width", "layers", "heads", "mlp_width")), "contrastive"),
    **dict.fromkeys((f"caption.{key}" for key in ("width", "layers", "heads", "mlp_width")), "caption"),
}
# Of a pretrained text tower, these describe nothing: its own configuration does.
_OF_TEXT_FROM_SCRATCH = ("text.layers", "text.heads", "text.mlp_width")
_MEASURED = {"mel.mean": 0.0, "mel.std": 1.0}  # these values stand for "measured on the training set"


@dataclass(frozen=True)
class InitialModel:
    """Architecture of a saved model.

    Attributes:
        name: as `model.init_from` gives it.
        config: every dimension.
        objectives: those that the model was trained for, which decide its parts.
    """

    name: str
    config: ModelConfig
    objectives: tuple[str, ...] = OBJECTIVES

    @classmethod
    def read(cls, name: str, folder: Path) -> InitialModel:
        """Read `config.json` of a model folder.

        Raises:
            ModelError: the file is missing or damaged.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise ModelError(f"model.init_from={name}: {path} is missing, so {folder} is not the folder of a model")
        config, objectives = model_config_from_json(path)
        return cls(name, config, objectives)


def model_config_from_json(path: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """The architecture and the objectives of `config.json`.

    Raises:
        ModelError: the file is damaged.
    """
    values = read_json_object(path)
    objectives = values.get("objectives", OBJECTIVES)
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    if not isinstance(objectives, list | tuple) or not set(objectives) <= set(OBJECTIVES):
        raise ModelError(f"{path}: objectives is {objectives!r}; it must be a list of {', '.join(OBJECTIVES)}")
    try:
        config = model_config_from_dict({key: value for key, value in values.items() if key in known})
    except ValueError as error:
        raise ModelError(f"{path}: is damaged: {error}; copy it again") from error
    return config, tuple(objectives)


def inherit_model(
    given: Mapping[tuple[str, ...], Any], initial: InitialModel, setting: Callable[[str], Any]
) -> dict[tuple[str, ...], Any]:
    """The given values of a recipe, with those of the initial model for each key of `model` that is not given.

    Args:
        given: values by path, such as `("recipe", "model", "audio", "width")`.
        setting: the value of a key of the recipe, such as `objectives.caption_weight`.

    Raises:
        ConfigError: a given value does not fit the weights.
    """
    values = dict(given)
    statistics_are_measured = all(
        values.get(("recipe", "model", *key.split(".")), sentinel) == sentinel for key, sentinel in _MEASURED.items()
    )
    for key, inherited in flat_model_config(initial.config).items():
        if key == "max_duration":
            continue  # of this run's own clips
        path = ("recipe", "model", *key.split("."))
        if path not in values or (key in _MEASURED and statistics_are_measured):
            values[path] = inherited
        elif values[path] != inherited and _is_fixed(key, initial, setting):
            raise ConfigError(
                f"model.{key} is {values[path]!r}, but {inherited!r} in the model of model.init_from={initial.name}, "
                f"whose weights fit no other value: set model.{key}={inherited}, or leave it out of the recipe"
            )
    return values


def changed_settings(initial: ModelConfig, model: ModelConfig) -> list[str]:
    """`model.KEY old -> new` for each setting of the weights' model that changes results and not its shapes."""
    there, here = flat_model_config(initial), flat_model_config(model)
    skipped = (*_FIXED, *_MEASURED, "text.pretrained", "text.vocab_size", "logit_scale_init")
    return [
        f"model.{key} {there[key]!r} -> {here[key]!r}"
        for key in there
        if there[key] != here[key] and key not in skipped and not key.startswith("prototype.")
    ]


def flat_model_config(model: ModelConfig) -> dict[str, Any]:
    """Values by key, such as `audio.width`."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(ModelConfig):
        value = getattr(model, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in dataclasses.fields(value)}
        else:
            flat[field.name] = value
    return flat


def _is_fixed(key: str, initial: InitialModel, setting: Callable[[str], Any]) -> bool:
    if key not in _FIXED or (key in _OF_TEXT_FROM_SCRATCH and initial.config.text.pretrained is not None):
        return False
    objective = _FIXED[key]
    return objective is None or (objective in initial.objectives and setting(f"objectives.{objective}_weight") > 0)
