"""Processes: how they start, how they agree, how they stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from slap_fast.extras import MissingExtraError


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def started(timeout: float) -> Iterator[Ranks]:
    """Join the process group the launcher describes; without a launcher, be a group of one.

    Args:
        timeout: seconds after which a collective without an answer raises.
    """
    _set_environment_defaults()
    deepspeed = import_deepspeed()
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=timeout), verbose=False
    )
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_world_size()))
    yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)
    # Not in a `finally`: after an error the other ranks are elsewhere, and an orderly farewell would wait for them.
    dist.destroy_process_group()


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and without its JIT builds on the CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError as error:
        raise MissingExtraError('training needs DeepSpeed: pip install "slap-fast[train]"') from error
    logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # Its shared-memory collectives are compiled on first use: half a minute, and for ever behind a stale lock.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def limit_group_timeouts(timeout: float) -> None:
    """Give every process group the timeout: the sub-groups that DeepSpeed makes do not inherit it."""
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout), group)


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank if `flag` is true on one. A collective call: every rank makes it."""
    agreed = torch.tensor([int(flag)], device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return bool(agreed.item())


class OtherRankFailed(RuntimeError):
    """This rank is well, but cannot go on alone."""


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """An error on one rank in the block, which holds no collective call, ends the block with an error on all.

    Raises:
        OtherRankFailed: on the ranks that did not fail.
    """
    try:
        yield
    except Exception:
        any_rank(True, device)
        raise
    if any_rank(False, device):
        raise OtherRankFailed("another rank failed; its own message says why")


def sum_over_ranks(count: int, device: torch.device | str = "cpu") -> int:
    """The sum of every rank's `count`, on every rank. A collective call."""
    total = torch.tensor([count], device=device)
    dist.all_reduce(total)
    return int(total.item())


class StopSignal:
    """Remembers SIGTERM and SIGINT until the ranks can agree to stop, at the end of a step.

    A second SIGINT interrupts at once. A second SIGTERM does not: launchers send it again while the checkpoint is being
    written.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def requested(self) -> bool:
        return self.name is not None


def _local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def _set_environment_defaults() -> None:
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
