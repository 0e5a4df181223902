"""Process group: initialization, errors and stop signals that all ranks share."""

from __future__ import annotations

import logging
import os
import signal
import time
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
from slap_fast.training.distributed.heartbeat import Heartbeat, RendezvousError, rendezvous, store_is_launchers
from slap_fast.training.distributed.launcher import watch_launcher
from slap_fast.training.distributed.rank_environment import configure_rank_environment


@dataclass(frozen=True)
class Ranks:
    """This process in its group."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    heartbeat: Heartbeat

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def init_distributed(timeout: float) -> Iterator[Ranks]:
    """Join the process group that the launcher's environment describes; without a launcher, a group of one rank.

    Args:
        timeout: seconds after which a rank that does not join, or does not answer, ends the run.

    Raises:
        LaunchError: the environment does not define the rank of this process.
        RendezvousError: some ranks have not joined.
    """
    configure_rank_environment()
    watch_launcher(timeout)
    deepspeed = import_deepspeed()
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    store, members = rendezvous(_connect(rank, timeout), rank, world_size, timeout)
    heartbeat = Heartbeat(store, members, rank, timeout)
    heartbeat.start()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_world_size()))
    set_default_timeout(timeout)
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
            heartbeat.report_missing_ranks()
        raise
    heartbeat.stop()
    # Not in a `finally`: after an error the other ranks are in other calls, and this would wait for them.
    dist.destroy_process_group()
    # A thread of gloo frees the tensors of the last collective and needs the interpreter for that: if it is already
    # shutting down, the process aborts, and a completed run counts as failed.
    time.sleep(0.1)


def _connect(rank: int, timeout: float) -> Store:
    """The store that the ranks share, hosted by torchrun or else by rank 0."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(
            host,
            port,
            is_master=rank == 0 and not store_is_launchers(),
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise RendezvousError(
                f"port {port} of {host} is taken ({reason}), perhaps by another run. A second run on a host needs "
                f"another port, such as deepspeed --master_port {port + 1} or torchrun --master-port {port + 1}"
            ) from error
        raise RendezvousError(
            f"no store at {host}:{port} within {timeout:g} s ({reason}). The launcher or rank 0 hosts it: check "
            "that it runs, and that MASTER_ADDR and MASTER_PORT reach it from this host"
        ) from error


def import_deepspeed() -> Any:
    """DeepSpeed with its log at WARNING and without JIT builds on the CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError as error:
        raise MissingExtraError('training needs DeepSpeed: pip install "slap-fast[train]"') from error
    logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # Its shared-memory collectives are compiled on first use: for half a minute, or forever if a stale lock is left.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def set_default_timeout(timeout: float) -> None:
    """Set the timeout of all process groups created later.

    The default group's timeout is not inherited: the groups that DeepSpeed creates would wait for 10 or 30 minutes.
    """
    distributed_c10d.default_pg_timeout = timedelta(seconds=timeout)
    distributed_c10d.default_pg_nccl_timeout = timedelta(seconds=timeout)


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank if `flag` is true on any rank. A collective call."""
    agreed = torch.tensor([int(flag)], device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return bool(agreed.item())


class OtherRankFailedError(SlapFastError, RuntimeError):
    """Another rank failed, so this one cannot continue."""

    retryable = True


@contextmanager
def raise_on_any_rank(device: torch.device) -> Iterator[None]:
    """If the block fails on any rank, raise on all ranks. The block must not contain collective calls.

    Raises:
        OtherRankFailedError: on the ranks whose own block succeeded.
    """
    try:
        yield
    except Exception:
        any_rank(True, device)
        raise
    if any_rank(False, device):
        raise OtherRankFailedError("another rank failed; its own message gives the reason")


def all_reduce_count(count: int, device: torch.device | str = "cpu") -> int:
    """Sum of `count` over all ranks, on every rank. A collective call."""
    total = torch.tensor([count], device=device)
    dist.all_reduce(total)
    return int(total.item())


def ranks_that_differ(value: int, device: torch.device | str = "cpu") -> list[int]:
    """The ranks whose `value`, of 63 bits, is not that of rank 0. A collective call."""
    own = torch.tensor([value], device=device)
    values = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(values, own)
    return [rank for rank, each in enumerate(values) if each.item() != values[0].item()]


class StopSignal:
    """Records SIGTERM and SIGINT until the ranks agree to stop at the end of a step.

    A second SIGINT interrupts at once. A second SIGTERM does not: launchers repeat it while the checkpoint is written.
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
