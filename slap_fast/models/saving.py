"""Model folders: saves a SLAP model and loads it, with every file validated before it is used."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slap_fast.config.model import OBJECTIVES, ModelConfig, model_config_from_dict
from slap_fast.config.saved_files import (
    largest_token_id,
    read_json_object,
    read_text_config,
    read_tokenizer,
    save_tokenizer,
)
from slap_fast.errors import ModelError, one_line
from slap_fast.models.quantization import require_float
from slap_fast.ops.packed import PackedLayout
from slap_fast.runtime.durable_files import replace_file_with, replace_text, save_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slap_fast.models.slap import SLAP, Towers

MODEL_TYPE = "slap"
"""`model_type` in config.json, by which transformers finds `SlapConfig`."""
_TRANSFORMERS_KEYS = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version")


def save_model(model: SLAP, folder: str | os.PathLike, weights: Mapping[str, Tensor] | None = None) -> None:
    """See `SLAP.save_pretrained`; `weights` replaces the state dict of the model.

    Raises:
        ModelError: a name or shape of `weights` is not that of the model, or the model has only its audio tower or has
            int8 weights.
        OSError: a file cannot be written.
    """
    if model.towers != "all":
        raise ModelError(f"a model that was loaded with towers={model.towers!r} cannot be saved: load all of it")
    require_float(model, "be saved")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = model.state_dict()
    if weights is not None:
        shapes = ({name: tuple(value.shape) for name, value in tensors.items()} for tensors in (weights, own))
        _check_shapes(folder / "model.safetensors", *shapes)
    weights = {name: value.detach().cpu().contiguous() for name, value in (own if weights is None else weights).items()}
    replace_file_with(folder / "model.safetensors", lambda path: save_safetensors(path, weights))
    save_config_and_tokenizer(model, folder)


def save_config_and_tokenizer(model: SLAP, folder: str | os.PathLike) -> None:
    """See `SLAP.save_config_and_tokenizer`."""
    folder = Path(folder)
    if model.text_encoder is not None:
        model.text_encoder.model.config.save_pretrained(folder / "text_config")
    if model.tokenizer is not None:
        save_tokenizer(model.tokenizer, folder / "tokenizer")
    # For AutoConfig and AutoFeatureExtractor of transformers, which look for these files and keys.
    keys = {"model_type": MODEL_TYPE, "architectures": ["SlapModel"]}
    values = keys | dataclasses.asdict(model.config) | {"objectives": model.objectives}
    replace_text(folder / "config.json", json.dumps(values, indent=2) + "\n")
    sampling = {"sampling_rate": model.config.mel.sample_rate}
    replace_text(folder / "preprocessor_config.json", json.dumps(sampling, indent=2) + "\n")


def load_model(model_class: type[SLAP], folder: str | os.PathLike, *, towers: Towers = "all") -> SLAP:
    """See `SLAP.from_pretrained`; the model is on the CPU."""
    folder = Path(folder)
    _require_files(folder, "config.json", "model.safetensors")
    path = folder / "config.json"
    values = read_json_object(path)
    try:
        objectives, config = read_config(values)
    except ValueError as error:
        raise ModelError(f"{path}: is damaged: {error}; copy it again") from error
    if towers == "audio":
        return _load_audio_tower(model_class, folder, objectives, config)
    text_config = None
    if "contrastive" in objectives:
        _require_files(folder, "text_config/config.json")
        text_config = read_text_config(folder / "text_config" / "config.json")
    tokenizer = read_tokenizer(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    try:
        # On the meta device: the sizes in the configuration are checked against the weights before memory is allocated.
        with torch.device("meta"):
            expected = model_class(
                config, objectives=objectives, load_pretrained_text=False, text_hf_config=copy.deepcopy(text_config)
            )
    except ModelError:
        raise
    except Exception as error:  # Transformers models raise errors of many types for invalid sizes.
        raise ModelError(
            f"{folder}: no model can be built of config.json and text_config/ ({one_line(error)})"
        ) from error
    weights = _read_weights(folder / "model.safetensors", expected.state_dict())
    _check_vocabulary(tokenizer, expected, folder)
    from transformers.initialization import no_init_weights

    # Random initialization would take most of the time. Weights are float32 for any default dtype of torch.
    with no_init_weights():
        model = model_class(
            config, objectives=objectives, load_pretrained_text=False, text_hf_config=text_config
        ).float()
    model.load_state_dict(weights)
    model.tokenizer = tokenizer
    model.eval()
    if model.text_encoder is not None:
        _check_text_tower(model, folder)
    return model


def _load_audio_tower(model_class: type[SLAP], folder: Path, objectives: tuple[str, ...], config: ModelConfig) -> SLAP:
    with torch.device("meta"):
        model = model_class(config, objectives=objectives, load_pretrained_text=False, towers="audio")
    weights = _read_weights(folder / "model.safetensors", model.state_dict(), others=True)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def read_config(values: Mapping[str, Any]) -> tuple[tuple[str, ...], ModelConfig]:
    """The objectives and the configuration of a config.json, with or without the keys that transformers adds.

    Raises:
        ValueError: it is of another kind of model, or a key is unknown, of the wrong type or out of range.
    """
    if (kind := values.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
        raise ValueError(f"model_type is {kind!r}, which is another kind of model than {MODEL_TYPE!r}")
    own = {name: value for name, value in values.items() if name not in _TRANSFORMERS_KEYS}
    return _objectives(own.pop("objectives", OBJECTIVES)), model_config_from_dict(own)


def _require_files(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; {folder} is not a folder of SLAP.save_pretrained")


def _objectives(value: Any) -> tuple[str, ...]:
    """The `objectives` of config.json, which older folders lack: they have every part."""
    if not isinstance(value, list | tuple) or not value or not all(name in OBJECTIVES for name in value):
        raise ValueError(f"objectives is {value!r}; it must be a list of one or more of {', '.join(OBJECTIVES)}")
    return tuple(value)


def _read_weights(path: Path, expected: Mapping[str, Tensor], *, others: bool = False) -> dict[str, Tensor]:
    """Weights by name, float32 on the CPU.

    Args:
        expected: tensors with the expected names and shapes, on any device.
        others: the file has other weights as well, which are not read.

    Raises:
        ModelError: the file is damaged; or a weight is missing, unknown, of another shape, or not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name in expected or not others]  # noqa: SIM118 - no mapping
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            _check_shapes(path, shapes, {name: tuple(value.shape) for name, value in expected.items()})
            weights = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: is damaged ({one_line(error)}); copy it again") from error
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ModelError(f"{path}: {name} holds {value.dtype}, which no weight is; copy the file again")
        weights[name] = value = value.to(torch.float32)
        # Faster than isfinite().all() and without a mask in memory: a NaN or infinity shows in the minimum or maximum.
        if value.numel() and not all(math.isfinite(end) for end in map(float, value.aminmax())):
            bad = int((~value.isfinite()).sum())
            raise ModelError(
                f"{path}: {bad} of the {value.numel()} values of {name} are NaN or infinite: the file is damaged, or "
                "training had diverged; copy it again, or export an earlier checkpoint"
            )
    return weights


def _check_shapes(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ModelError(f"{path} lacks {name}; the weights and config.json are of different models")
        if name not in expected:
            raise ModelError(f"{path} has {name}, which a model of this config.json does not have")
        if found[name] != expected[name]:
            raise ModelError(f"{name} has shape {found[name]} in {path}, but {expected[name]} according to config.json")


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase | None, model: SLAP, folder: Path) -> None:
    """Rejects token ids and positions beyond the embedding tables of the text tower."""
    size = model.vocab_size
    if tokenizer is not None and size is not None and (largest := largest_token_id(tokenizer)) >= size:
        raise ModelError(
            f"{folder / 'tokenizer'}: it has a token of id {largest}, but the model has a vocabulary of {size}; the "
            "tokenizer is of another model"
        )
    if model.text_encoder is None:
        return
    positions = getattr(model.text_encoder.model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions < model.config.text.max_length:
        raise ModelError(
            f"{folder}: text.max_length is {model.config.text.max_length} in config.json, but the text encoder has "
            f"{positions} positions"
        )


@torch.inference_mode()
def _check_text_tower(model: SLAP, folder: Path) -> None:
    """Runs the text tower once on a few tokens: many invalid settings of its configuration fail only in use."""
    ids = [0, 1] if model.tokenizer is None else model.tokenizer("a b")["input_ids"]
    layout = PackedLayout.from_lengths([len(ids)])
    try:
        features = model.text_encoder(torch.tensor(ids), layout)
    except Exception as error:  # Transformers models raise errors of many types.
        raise ModelError(
            f"{folder}: the text tower that text_config/config.json describes does not run ({one_line(error)})"
        ) from error
    if not bool(features.isfinite().all()):
        raise ModelError(
            f"{folder}: the text tower's output is not finite: a file of the folder is damaged; copy it again"
        )
