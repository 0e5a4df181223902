"""Benchmarks of training on several ranks of this machine's CPU: each rank is a process that prints its results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


def run_ranks(
    module: Sequence[str], ranks: int, *, timeout: float, environment: Mapping[str, str] = MappingProxyType({})
) -> list[Any]:
    """Run `python -m MODULE ...` as each rank.

    Args:
        module: the module and its arguments.
        timeout: seconds, for all ranks together.
        environment: variables besides those of a launcher.

    Returns:
        The last line of the output, which is JSON, of each rank that has any.

    Raises:
        RuntimeError: a rank failed; the message has the end of its errors.
        subprocess.TimeoutExpired: the ranks took longer than `timeout`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"LOCAL_WORLD_SIZE": str(ranks), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=_ROOT,
            env={**common, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(_ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [child.communicate(timeout=timeout) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, errors) in zip(children, outputs, strict=True):
        if child.returncode:
            raise RuntimeError(f"a rank exited with {child.returncode}:\n{errors[-3000:]}")
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs if output.strip()]
