"""Parameter groups of AdamW: weight decay, and learning rates by part (`optimizer.rate_multipliers`) and by layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from slap_fast.config.recipe import OptimizerConfig
from slap_fast.errors import ModelError
from slap_fast.training.frozen import model_parts
from slap_fast.training.model import PretrainingModel

MULTIPLIER = "rate_multiplier"
"""Key of a group whose learning rate is not that of the schedule: the factor between them."""
_TOWERS = ("audio_encoder", "text_encoder")


def parameter_groups(model: PretrainingModel, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of equal weight decay and learning rate. Norms, biases, probes, mask token and logit scale do not decay.

    Raises:
        ModelError: `optimizer.layer_decay` is below 1, and a tower has no list of layers.
    """
    multipliers = rate_multipliers(model, config)
    members: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Everything that should not decay is a vector or a scalar, and nothing else is.
            members[multipliers.get(parameter, 1.0), parameter.ndim > 1].append(parameter)
    groups = []
    for (multiplier, decays), parameters in sorted(members.items(), key=lambda item: item[0], reverse=True):
        name = ("decay" if decays else "no_decay") + ("" if multiplier == 1 else f", learning rate x {multiplier:g}")
        group = {"name": name, "params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
        groups.append(group if multiplier == 1 else group | {MULTIPLIER: multiplier})
    return groups


def rate_multipliers(model: PretrainingModel, config: OptimizerConfig) -> dict[nn.Parameter, float]:
    """Factor of the learning rate of each parameter of the student."""
    multipliers: dict[nn.Parameter, float] = {}
    for name, part in model_parts(model).items():
        of_part = getattr(config.rate_multipliers, name)
        of_layer = _layer_multipliers(part, name, config.layer_decay) if name in _TOWERS else {}
        for parameter in part.parameters():
            multipliers[parameter] = of_part * of_layer.get(parameter, 1.0)
    return multipliers


def part_multipliers(model: PretrainingModel, config: OptimizerConfig) -> dict[str, float]:
    """For the log: the factor of each trained part that differs from 1.

    With `optimizer.layer_decay`, `PART` is that of the highest layer, and `PART/lowest` that of the embeddings.
    """
    multipliers, found = rate_multipliers(model, config), {}
    for name, part in model_parts(model).items():
        of_part = [multipliers[parameter] for parameter in part.parameters() if parameter.requires_grad]
        if of_part and set(of_part) != {1.0}:
            found[name] = max(of_part)
            if min(of_part) < max(of_part):
                found[f"{name}/lowest"] = min(of_part)
    return found


def _layer_multipliers(tower: nn.Module, name: str, decay: float) -> dict[nn.Parameter, float]:
    """Layer-wise decay as in BEiT and MAE.

    Of a tower with L layers, layer i (from 0) has `decay ** (L - i)`, the embeddings have `decay ** (L + 1)`, and what
    follows the last layer has 1.
    """
    if decay == 1:
        return {}
    lists = {key: module for key, module in tower.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ModelError(
            f"optimizer.layer_decay is {decay}, but the {name} ({type(tower).__name__}) has no list of layers; set it "
            f"to 1, and optimizer.rate_multipliers.{name} instead"
        )
    prefix, layers = max(lists.items(), key=lambda item: len(item[1]))
    depth = len(layers)
    found = {}
    for key, parameter in tower.named_parameters():
        if key.startswith(f"{prefix}."):
            found[parameter] = decay ** (depth - int(key.removeprefix(f"{prefix}.").partition(".")[0]))
        elif "embed" in key or key == "mask_token":
            found[parameter] = decay ** (depth + 1)
    return found
