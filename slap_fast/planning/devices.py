"""Device figures for planning (memory, peak FLOP/s, bandwidths), each with its origin."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from slap_fast.config.loading import ConfigError

PATH = Path(__file__).with_name("devices.yaml")


@dataclass(frozen=True)
class Figure:
    """
    Attributes:
        value: in FLOP/s, bytes, bytes/s or seconds, or a fraction.
        kind: "measured", "nominal" (data sheet), "assumed", or "given" by the user.
        origin: the benchmark result, the data sheet, or the reason.
    """

    value: float
    kind: str
    origin: str


@dataclass(frozen=True)
class Device:
    """One device. Its figures are documented in `devices.yaml`.

    Attributes:
        node: number of devices in a node.
    """

    key: str
    name: str
    memory: Figure
    peak_bf16: Figure
    peak_fp32: Figure
    share: Figure
    bandwidth: Figure
    call: Figure
    hook: Figure
    link: Figure
    network: Figure
    collective_share: Figure
    overhead: Figure
    node: int

    @property
    def is_cpu(self) -> bool:
        return self.key == "cpu"

    def figures(self) -> dict[str, Figure]:
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Figure)
        }

    def rate(self, *, bf16: bool) -> float:
        """FLOP/s of large matrix products."""
        return (self.peak_bf16 if bf16 else self.peak_fp32).value * self.share.value

    def collective_bandwidth(self, devices: int) -> float:
        """Bytes/s that each of `devices` devices sends and receives in a collective."""
        between_nodes = devices > self.node and not self.is_cpu
        return (self.network if between_nodes else self.link).value * self.collective_share.value


def find_device(key: str, devices: int) -> Device:
    """The device `key` of `devices.yaml`; for `cpu`, one rank's share of this machine's cores and memory.

    Raises:
        ConfigError: there is no such device; the message lists the known ones.
    """
    known = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ConfigError(f"device={key}: no such device; {hint}(known: {', '.join(known)})")
    fields: dict[str, Any] = {
        name: _figure(value) if isinstance(value, dict) else value for name, value in known[key].items()
    }
    from slap_fast.training.metrics.peak_flops import data_sheet_peak_flops  # loads torch, which takes seconds

    precisions: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    for precision in precisions:
        if peak := data_sheet_peak_flops(fields["name"], precision):
            fields[f"peak_{precision}"] = Figure(peak, "nominal", "data sheet, without sparsity and TF32")
    if key == "cpu":
        cores = max(1, len(os.sched_getaffinity(0)) // devices)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / devices
        fields["memory"] = Figure(memory, "measured", f"this machine's, for one of {devices} ranks")
        for name in ("peak_bf16", "peak_fp32", "bandwidth"):
            fields[name] = dataclasses.replace(fields[name], value=fields[name].value * cores)
        fields["name"] = f"{cores} of this machine's cores, each taken for {fields['name']}"
    return Device(key=key, **fields)


def _figure(entry: dict[str, Any]) -> Figure:
    origin = entry.get("origin") or f"fitted to benchmarks/results/{entry['result']}.json, {entry['case']}"
    return Figure(float(entry["value"]), entry["is"], origin)
