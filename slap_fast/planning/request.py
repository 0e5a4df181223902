"""Arguments of a plan: `recipe=paper devices=64 [device=h100] [section.key=value ...] [plan.key=value ...]`."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from slap_fast.config.loading import ConfigError, Settings, coerce, read_arguments
from slap_fast.config.recipe import RunConfig
from slap_fast.planning.devices import Device, Figure, find_device


@dataclass(frozen=True)
class PlanOptions:
    """Assumptions of the plan that the user can override. None: the value of `devices.yaml` or of the dataset."""

    memory_gb: float | None = None
    """Memory of a device, in 1e9 bytes."""
    usable_memory: float = 0.92
    """Fraction of it that a step may use; the rest is lost to fragmentation."""
    compute_share: float | None = None
    """Fraction of the device's peak that large products reach."""
    network_gb: float | None = None
    """1e9 bytes/s between nodes, per device, one way."""
    devices_per_node: int | None = None
    seconds: float | None = None
    """Duration of every clip."""
    caption_tokens: float | None = None
    flac_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigError(f"plan.{name} is {value}; it must be positive")
        for name in ("usable_memory", "compute_share"):
            if (getattr(self, name) or 0) > 1:
                raise ConfigError(f"plan.{name} is {getattr(self, name)}; it is a fraction, at most 1")


@dataclass(frozen=True)
class PlanRequest:
    """
    Attributes:
        arguments: the recipe and its overrides, which are also arguments of training.
    """

    config: RunConfig
    arguments: tuple[str, ...]
    devices: int
    device: Device
    options: PlanOptions


def parse_request(arguments: Sequence[str]) -> PlanRequest:
    """
    Raises:
        ConfigError: an invalid argument, or a batch size that `devices` does not divide.
    """
    own = {"devices": "1", "device": "h100"}
    options: dict[str, object] = {}
    rest = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key in own and equals:
            own[key] = text
        elif key.startswith("plan."):
            options[key.removeprefix("plan.")] = _option(key, text, argument)
        elif equals and "." not in key and key != "recipe":
            nearest = difflib.get_close_matches(key, [*own, "recipe"], n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"argument {argument!r}: unknown key {key!r}{hint}")
        else:
            rest.append(argument)
    config = _run_config(read_arguments(rest))
    devices = coerce(own["devices"], int, "devices", f"argument 'devices={own['devices']}'")
    batch_size = config.recipe.schedule.batch_size
    if devices < 1 or batch_size % devices:
        near = sorted(
            (count for count in range(1, batch_size + 1) if batch_size % count == 0), key=lambda n: abs(n - devices)
        )
        raise ConfigError(
            f"devices={devices}: it does not divide schedule.batch_size ({batch_size}); use devices={near[0]}, "
            "or another schedule.batch_size"
        )
    settings = PlanOptions(**options)  # type: ignore[arg-type]
    return PlanRequest(config, tuple(rest), devices, _override(find_device(own["device"], devices), settings), settings)


def _run_config(settings: Settings) -> RunConfig:
    """The configuration, at the size of the model that `model.init_from` names; unset, at that of the recipe."""
    if not (name := settings.get("model.init_from")):
        return settings.config()
    from slap_fast.training.initial_weights import find_source  # loads torch

    return settings.config(find_source(name).model)


def _option(key: str, text: str, argument: str) -> object:
    hints = typing.get_type_hints(PlanOptions)
    name = key.removeprefix("plan.")
    if name not in hints:
        nearest = difflib.get_close_matches(name, hints, n=1, cutoff=0.0)
        raise ConfigError(f"argument {argument!r}: unknown key {key!r}; did you mean 'plan.{nearest[0]}'?")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"argument {argument!r}: cannot read the value: {error}") from error
    return coerce(value, hints[name], key, f"argument {argument!r}")


def _override(device: Device, options: PlanOptions) -> Device:
    changes: dict[str, object] = {}
    for name, given in (
        ("memory", None if options.memory_gb is None else options.memory_gb * 1e9),
        ("share", options.compute_share),
        ("network", None if options.network_gb is None else options.network_gb * 1e9),
    ):
        if given is not None:
            changes[name] = Figure(given, "given", "this command")
    if options.devices_per_node is not None:
        changes["node"] = options.devices_per_node
    return dataclasses.replace(device, **changes)  # type: ignore[arg-type]
