"""Steps captured in CUDA graphs, so that a timing holds what the device takes and not what Python takes to launch.

A graph runs the step once on each of several sets of inputs. Together they span the L2 cache several times, so that a
step finds its inputs in memory, as it does in a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.harness.case import Run

CACHE_SPANS = 3
MOST_COPIES = 16


@dataclass(frozen=True)
class Replay:
    """A captured step.

    Attributes:
        run: replays the graph: `copies` steps.
        copies: sets of inputs.
    """

    run: Callable[[], None]
    copies: int


def input_copies(setup_bytes: int, cache_bytes: int) -> int:
    """How many sets of `setup_bytes` of inputs span an L2 cache of `cache_bytes` several times, within reason."""
    return max(1, min(MOST_COPIES, math.ceil(CACHE_SPANS * cache_bytes / max(1, setup_bytes))))


def capture(runs: Sequence[Run]) -> Replay:
    """Capture one step of each of `runs`, which have run before.

    Raises:
        RuntimeError: a step waits for the device, or does something else that a graph cannot hold.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run.step()  # what is set up once a stream, such as cuBLAS' workspace, is not captured
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for run in runs:
            run.step()
    return Replay(graph.replay, len(runs))
