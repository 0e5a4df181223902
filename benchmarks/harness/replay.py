"""Captures steps in CUDA graphs, so that a time is that of the device, without the launches from Python.

A graph runs the step once on each of several sets of inputs. Together they are several times as large as the L2 cache,
so that a step reads its inputs from memory, as in a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.harness.case import Run

CACHE_MULTIPLE = 3
MAX_COPIES = 16


@dataclass(frozen=True)
class Replay:
    """A captured step.

    Attributes:
        run: replays the graph, which runs `copies` steps.
        copies: number of input sets.
    """

    run: Callable[[], None]
    copies: int


def input_copies(setup_bytes: int, cache_bytes: int) -> int:
    """Number of input sets of `setup_bytes` each that together are several times as large as the L2 cache."""
    return max(1, min(MAX_COPIES, math.ceil(CACHE_MULTIPLE * cache_bytes / max(1, setup_bytes))))


def capture(runs: Sequence[Run]) -> Replay:
    """Capture one step of each of `runs`; each step must have run before.

    Raises:
        RuntimeError: a step synchronizes with the device, or does something else that cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run.step()  # so that one-time set-up per stream, such as the cuBLAS workspace, is not captured
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for run in runs:
            run.step()
    return Replay(graph.replay, len(runs))
