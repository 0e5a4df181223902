"""Rank environment: reads rank, world size and master address from torchrun, DeepSpeed, Slurm or Open MPI."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import MutableMapping

from slap_fast.errors import SlapFastError

Environment = MutableMapping[str, str]
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LaunchError(SlapFastError, ValueError):
    """The environment does not define the rank of this process or the address of rank 0."""


def configure_rank_environment(environment: Environment = os.environ) -> None:
    """Set `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT` unless they are set.

    torchrun and `deepspeed` set all five. Under `srun` and Open MPI's `mpirun` they are derived from the variables of
    those launchers. A process without a launcher becomes the only rank.

    Raises:
        LaunchError: some of the required variables are missing, or one is not a number.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        pass
    # A batch script of `sbatch` also has SLURM_PROCID, but is a single process; only srun sets the step.
    elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        _from_slurm(environment)
    elif "OMPI_COMM_WORLD_RANK" in environment:
        _take(environment, RANK="OMPI_COMM_WORLD_RANK", WORLD_SIZE="OMPI_COMM_WORLD_SIZE")
        _take(environment, LOCAL_RANK="OMPI_COMM_WORLD_LOCAL_RANK", LOCAL_WORLD_SIZE="OMPI_COMM_WORLD_LOCAL_SIZE")
    else:
        environment.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        environment["MASTER_PORT"] = str(_free_port())
    _check(environment)


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: `gpu[03-05,9],cpu1` gives `gpu03`.

    Raises:
        LaunchError: the list has no host.
    """
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", node_list.strip())[0])
    if not re.fullmatch(r"[\w.-]+", host):
        raise LaunchError(f"the Slurm node list {node_list!r} has no first host; set MASTER_ADDR to the host of rank 0")
    return host


def _from_slurm(environment: Environment) -> None:
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    _take(environment, RANK="SLURM_PROCID", WORLD_SIZE=count, LOCAL_RANK="SLURM_LOCALID")
    nodes = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in environment else "SLURM_JOB_NODELIST"
    if "MASTER_ADDR" not in environment:
        environment["MASTER_ADDR"] = _first_slurm_host(_required(environment, nodes))
    if "MASTER_PORT" not in environment:
        # Equal on all hosts, different for each job step, below the ephemeral ports.
        job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
        environment["MASTER_PORT"] = str(15_000 + (job * 7 + step) % 15_000)


def _first_slurm_host(node_list: str) -> str:
    command = ["scontrol", "show", "hostnames", node_list]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    # Containers often lack scontrol.
    except (OSError, subprocess.SubprocessError, IndexError):
        return first_host(node_list)


def _check(environment: Environment) -> None:
    if missing := [name for name in RANK_VARIABLES if not environment.get(name)]:
        given = ", ".join(f"{name}={environment[name]}" for name in RANK_VARIABLES if environment.get(name))
        raise LaunchError(
            f"{', '.join(missing)} not set, but {given}: set all of {', '.join(RANK_VARIABLES)}, or start the ranks "
            "with torchrun, deepspeed or srun"
        )
    rank, world_size, local_rank = (_number(environment, name) for name in RANK_VARIABLES[:3])
    _number(environment, "MASTER_PORT")
    if rank >= world_size or local_rank >= world_size:
        raise LaunchError(f"RANK={rank} and LOCAL_RANK={local_rank} must be below WORLD_SIZE={world_size}")


def _take(environment: Environment, **sources: str) -> None:
    for name, source in sources.items():
        environment[name] = _required(environment, source)


def _required(environment: Environment, name: str) -> str:
    if not environment.get(name):
        launcher = "srun" if name.startswith("SLURM") else "mpirun"
        raise LaunchError(f"{name} is not set, although this process seems to be started by {launcher}")
    return environment[name]


def _number(environment: Environment, name: str) -> int:
    value = _required(environment, name)
    if not value.isdecimal():
        raise LaunchError(f"{name} is {value!r}, which is not a number")
    return int(value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
