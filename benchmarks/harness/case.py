"""What a benchmark describes, and how its correctness is judged."""

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

AUDIO_SECONDS = "audio seconds"  # a unit of work that is reported as "x real time"


@dataclass(frozen=True)
class Settings:
    """How to measure; the same for every peer of a run.

    Attributes:
        device: "cpu" or "cuda".
        threads: intra-op threads of the CPU.
        quick: small sizes and few rounds: proves that everything works, and is no measurement.
        rounds: timed rounds a case; None: as many as `seconds` allows.
        seconds: what the timed rounds of one case may take.
        budget: seconds after which a benchmark starts no further case; None: it runs them all.
        cold_cache: sweep the caches before each timed step.
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
    """A peer, set up: the speed and the memory measurement both call `step`, the check calls `outputs` first.

    Attributes:
        step: what is timed. What it returns is a result, and no working memory.
        outputs: named tensors to hold against the reference; leaves the state that `step` starts from untouched.
        outputs_take_step: `outputs` calls `step`, which then need not be tried out once more.
    """

    step: Callable[[], object]
    outputs: Callable[[], Outputs]
    outputs_take_step: bool = False


@dataclass(frozen=True)
class Peer:
    """One way to do a case's work.

    Attributes:
        name: unique in its case.
        setup: builds inputs and state; everything that must not be timed.
        unavailable: why this machine cannot run it; it is then listed with the reason.
    """

    name: str
    setup: Callable[[], Run]
    unavailable: str | None = None


@dataclass(frozen=True)
class Case:
    """One workload, the same for all of its peers.

    Attributes:
        name: unique in its benchmark.
        peers: in the order in which each round runs them.
        baseline: the peer that the others' times are divided into.
        reference: what is right.
        tolerance: largest relative RMS error, `|output - reference| / |reference|` in the 2-norm, of every output.
        work: what one step gets done, by unit: `{"tokens": 5000}` is reported as tokens/s.
        facts: what a reader must know of the workload.
        peak: the case of the same benchmark whose fastest peer is what the machine can do of the first unit of work;
            rates are reported as shares of it too.
        replayable: on a GPU, time replays of CUDA graphs. False where a step changes its own inputs, as training does.
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
            raise ValueError(f"case {self.name!r} names a peer twice: {names}")
        if self.baseline not in names:
            raise ValueError(f"case {self.name!r} has the baseline {self.baseline!r}; its peers are {names}")


def relative_errors(outputs: Outputs, reference: Outputs) -> dict[str, float]:
    """Relative RMS error of each output in float64; infinite where a shape differs or a value is not finite.

    Raises:
        ValueError: the names differ, so that something would go unchecked.
    """
    if set(outputs) != set(reference) or not reference:
        raise ValueError(f"outputs {sorted(outputs)} are not those of the reference {sorted(reference)}")
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


def missing(module: str, package: str) -> str | None:
    """Why the peer of an optional `package` cannot run, None if it can."""
    return None if importlib.util.find_spec(module) else f"{package} not installed"


def load_benchmark(name: str) -> ModuleType:
    """The benchmark `name`: a file of `benchmarks/`, or any importable module by its dotted name.

    Raises:
        ValueError: there is no such benchmark.
    """
    if "." in name:
        module = importlib.import_module(name)
    elif name in benchmark_names():
        module = importlib.import_module(f"benchmarks.{name}")
    else:
        raise ValueError(f"there is no benchmark {name!r}; choose from {', '.join(benchmark_names())}")
    return module


def default_names() -> list[str]:
    """Those of `benchmark_names` that do not ask, by a `BY_NAME_ONLY`, to be run only where they are named."""
    return [name for name, text in _sources().items() if not re.search(r"^BY_NAME_ONLY = True$", text, re.MULTILINE)]


def benchmark_names() -> list[str]:
    """Every module of `benchmarks/` that describes cases."""
    return list(_sources())


def _sources() -> dict[str, str]:
    """Read, not imported: a benchmark may need what this machine lacks, and another one is asked for."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].glob("*.py"))}
    return {name: text for name, text in texts.items() if re.search(r"^def cases\(", text, re.MULTILINE)}
