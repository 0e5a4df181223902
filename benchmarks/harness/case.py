"""Settings, cases and peers of a benchmark, and the error of a peer's outputs."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]

AUDIO_SECONDS = "audio seconds"  # this unit of work is reported as "x real time"


@dataclass(frozen=True)
class Settings:
    """Measurement settings, the same for every peer.

    Attributes:
        device: "cpu" or "cuda".
        threads: CPU threads within an operation.
        quick: small sizes and few rounds, to test that everything works; not a measurement.
        rounds: timed rounds per case; None: as many as fit in `seconds`.
        seconds: time for the timed rounds of one case.
        budget: seconds after which a benchmark starts no further case; None: no limit.
        cold_cache: flush the caches before each timed step.
    """

    device: str = "cpu"
    threads: int = 1
    quick: bool = False
    rounds: int | None = None
    seconds: float = 30.0
    budget: float | None = None
    cold_cache: bool = False


@dataclass(frozen=True)
class Run:
    """A peer after set-up. The check calls `outputs`; then the time and memory measurements call `step`.

    Attributes:
        step: the timed function. Its return value does not count as working memory.
        outputs: named tensors to compare with the reference. Must not change the state that `step` starts from.
        outputs_run_step: `outputs` calls `step`, so `step` needs no trial run.
        work: amount of work in one step of this peer, by unit; overrides that of the case. For peers that compute
            something else.
    """

    step: Callable[[], object]
    outputs: Callable[[], Outputs]
    outputs_run_step: bool = False
    work: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """One implementation of a case.

    Attributes:
        name: unique in the case.
        setup: builds inputs and state; not timed.
        unavailable: the reason why this machine cannot run it, shown in the table; None if it can.
    """

    name: str
    setup: Callable[[], Run]
    unavailable: str | None = None


@dataclass(frozen=True)
class Case:
    """One workload, the same for all peers.

    Attributes:
        name: unique in the benchmark.
        peers: in the order in which each round runs them.
        baseline: name of the peer whose time is divided by the time of each peer.
        reference: computes the expected outputs.
        tolerance: largest allowed relative RMS error of each output, `|output - reference| / |reference|` (2-norm).
        work: amount of work in one step, by unit: `{"tokens": 5000}` is reported as tokens/s.
        facts: properties of the workload, shown below the table.
        peak: name of a case of the same benchmark. Its highest rate of the first unit of work is the peak rate of the
            machine, and the table shows each rate as a share of it.
        replayable: on a GPU, time CUDA graph replays. False if a step changes its own inputs, as training does.
    """

    name: str
    peers: tuple[Peer, ...]
    baseline: str
    reference: Callable[[], Outputs]
    tolerance: float
    work: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float | str] = field(default_factory=dict)
    peak: str | None = None
    replayable: bool = True

    def __post_init__(self) -> None:
        names = [peer.name for peer in self.peers]
        if len(set(names)) != len(names):
            raise ValueError(f"case {self.name!r} has two peers of the same name: {names}")
        if self.baseline not in names:
            raise ValueError(f"case {self.name!r}: the baseline {self.baseline!r} is not one of its peers {names}")


def relative_errors(outputs: Outputs, reference: Outputs) -> dict[str, float]:
    """Relative RMS error of each output in float64; infinite if a shape differs or a value is not finite.

    Raises:
        ValueError: the names differ.
    """
    if set(outputs) != set(reference) or not reference:
        raise ValueError(f"the outputs {sorted(outputs)} do not match the outputs of the reference {sorted(reference)}")
    errors = {}
    for name, expected in reference.items():
        expected = expected.detach().double()
        value = outputs[name].detach().to(expected.device, torch.float64)
        if value.shape != expected.shape or not (value.isfinite().all() and expected.isfinite().all()):
            errors[name] = float("inf")
            continue
        scale = expected.norm().item()
        error = (value - expected).norm().item()
        errors[name] = error / scale if scale else error
    return errors


def not_installed(module: str, package: str) -> str | None:
    """The reason for `Peer.unavailable` if `module` of the optional `package` is not installed, else None."""
    return None if importlib.util.find_spec(module) else f"{package} not installed"


def load_benchmark(name: str) -> ModuleType:
    """Import a benchmark: the name of a file in `benchmarks/`, or the dotted name of any module.

    Raises:
        ValueError: no such benchmark.
    """
    if "." in name:
        return importlib.import_module(name)
    if name not in benchmark_names():
        raise ValueError(f"there is no benchmark {name!r}; choose from {', '.join(benchmark_names())}")
    return importlib.import_module(f"benchmarks.{name}")


def default_names() -> list[str]:
    """Benchmarks that run if none is named: all but those with `BY_NAME_ONLY = True`."""
    return [name for name, text in _sources().items() if not re.search(r"^BY_NAME_ONLY = True$", text, re.MULTILINE)]


def benchmark_names() -> list[str]:
    """All modules of `benchmarks/` with a function `cases`."""
    return list(_sources())


def _sources() -> dict[str, str]:
    """Sources of the benchmarks by name. Not imported, because an unrelated benchmark may need a missing package."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].glob("*.py"))}
    return {name: text for name, text in texts.items() if re.search(r"^def cases\(", text, re.MULTILINE)}
