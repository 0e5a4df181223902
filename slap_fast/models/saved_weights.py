"""`model.safetensors`: read only where it is what the configuration beside it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from slap_fast.config.saved_files import words
from slap_fast.errors import ModelError


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by name, on the CPU.

    Args:
        path: of the file.
        expected: tensors of the shapes that the configuration says, of any device.

    Raises:
        ModelError: the file is damaged; or a weight is missing, unknown, of another shape, or not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            _check_shapes(path, shapes, {name: tuple(value.shape) for name, value in expected.items()})
            weights = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: is damaged ({words(error)}); copy it again") from error
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ModelError(f"{path}: {name} holds {value.dtype}, which no weight is; copy the file again")
        weights[name] = value = value.to(torch.float32)
        # Not isfinite() of all: this takes one pass and no memory, and what is not finite shows in either end.
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
            raise ModelError(f"{path} lacks {name}; the weights do not belong to the config.json beside them")
        if name not in expected:
            raise ModelError(f"{path} holds {name}, which the model of the config.json beside it does not have")
        if found[name] != expected[name]:
            raise ModelError(
                f"{name} has shape {found[name]} in {path}, but {expected[name]} by the config.json beside it"
            )
