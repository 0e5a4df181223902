"""Processes: how they start, how they agree, how they stop."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore, distributed_c10d

from slap_fast.errors import MissingExtraError, SlapFastError
from slap_fast.training.distributed.heartbeat import Heartbeat, RendezvousError, kept_by_launcher, meet
from slap_fast.training.distributed.launcher import watch_launcher
from slap_fast.training.distributed.rank_environment import settle_environment


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    heartbeat: Heartbeat

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def started(timeout: float) -> Iterator[Ranks]:
    """Join the process group the launcher describes; without a launcher, be a group of one.

    Args:
        timeout: seconds after which a rank that does not come, or does not answer, ends the run.

    Raises:
        LaunchError: the environment does not say which rank this is.
        RendezvousError: not all ranks have come.
    """
    settle_environment()
    watch_launcher(timeout)
    deepspeed = import_deepspeed()
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    store, members = meet(_connect(rank, timeout), rank, world_size, timeout)
    heartbeat = Heartbeat(store, members, rank, timeout)
    heartbeat.start()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_world_size()))
    limit_waiting(timeout)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            # Binds NCCL to the device; a single rank has nothing to bind.
            device_id=device if device.type == "cuda" and world_size > 1 else None,
        )
        deepspeed.init_distributed(timeout=timedelta(seconds=timeout), verbose=False)
        yield Ranks(rank, world_size, local_rank, device, heartbeat)
    except RuntimeError as error:
        if not isinstance(error, SlapFastError):
            heartbeat.report()
        raise
    heartbeat.stop()
    # Not in a `finally`: after an error the other ranks are elsewhere, and an orderly farewell would wait for them.
    dist.destroy_process_group()


def _connect(rank: int, timeout: float) -> Store:
    """The store that the ranks share: torchrun keeps one for them, otherwise rank 0 does."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(
            host,
            port,
            is_master=rank == 0 and not kept_by_launcher(),
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise RendezvousError(
                f"port {port} of {host} is taken ({reason}), perhaps by another run. A second run on a host needs a "
                f"port of its own, such as deepspeed --master_port {port + 1} or torchrun --master-port {port + 1}"
            ) from error
        raise RendezvousError(
            f"no store at {host}:{port} within {timeout:g} s ({reason}). It is the launcher's or rank 0's: is that "
            "running, and do MASTER_ADDR and MASTER_PORT lead to it from here?"
        ) from error


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


def limit_waiting(timeout: float) -> None:
    """Give every process group that is made from now on the timeout.

    That of the first group is not passed on: those that DeepSpeed makes would wait for 10 or 30 minutes.
    """
    distributed_c10d.default_pg_timeout = timedelta(seconds=timeout)
    distributed_c10d.default_pg_nccl_timeout = timedelta(seconds=timeout)


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank if `flag` is true on one. A collective call: every rank makes it."""
    agreed = torch.tensor([int(flag)], device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return bool(agreed.item())


class OtherRankFailed(SlapFastError, RuntimeError):
    """This rank is well, but cannot go on alone."""

    retryable = True


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
