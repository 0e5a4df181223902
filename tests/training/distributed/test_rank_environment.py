"""Rank environment: the variables of each launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from slap_fast.training.distributed.rank_environment import (
    RANK_VARIABLES,
    LaunchError,
    configure_rank_environment,
    first_host,
)

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu01", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29500",
}


def configured(given: dict[str, str]) -> dict[str, str]:
    environment = dict(given)
    configure_rank_environment(environment)
    return {name: environment[name] for name in RANK_VARIABLES}


@pytest.fixture(autouse=True)
def _no_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_given_variables_are_kept_also_under_srun() -> None:
    assert configured(SLURM | TORCHRUN) == TORCHRUN


def test_a_process_without_a_launcher_is_the_only_rank() -> None:
    alone = configured({})
    assert (alone["RANK"], alone["WORLD_SIZE"], alone["LOCAL_RANK"]) == ("0", "1", "0")
    # A batch script of sbatch has the variables of a task, but no step.
    batch = configured({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"})
    assert batch["WORLD_SIZE"] == "1"


def test_srun_tasks_use_the_first_host_and_a_port_per_step() -> None:
    first = configured(SLURM)
    assert [first[name] for name in RANK_VARIABLES[:4]] == ["3", "4", "1", "gpu07"]
    other_task = configured(SLURM | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"})
    assert other_task["MASTER_PORT"] == first["MASTER_PORT"]
    steps = [SLURM | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step} for job in "12" for step in "01"]
    ports = {configured(step)["MASTER_PORT"] for step in steps}
    assert len(ports) == len(steps)
    assert all(1024 < int(port) < 32_768 for port in ports)


def test_a_step_on_part_of_the_job_uses_its_own_tasks_and_hosts() -> None:
    step = SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "gpu08"}
    assert (configured(step)["WORLD_SIZE"], configured(step)["MASTER_ADDR"]) == ("2", "gpu08")


def test_scontrol_is_used_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[07-08]" ] && echo gpu07.cluster\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert configured(SLURM)["MASTER_ADDR"] == "gpu07.cluster"


def test_open_mpi_needs_the_master_address() -> None:
    assert configured(OPEN_MPI) == TORCHRUN
    unknown = {name: value for name, value in OPEN_MPI.items() if name != "MASTER_ADDR"}
    with pytest.raises(LaunchError, match=r"^MASTER_ADDR not set, but RANK=3"):
        configured(unknown)


@pytest.mark.parametrize("missing", RANK_VARIABLES)
def test_a_missing_variable_is_named(missing: str) -> None:
    with pytest.raises(LaunchError, match=f"^{missing} not set, but .*torchrun, deepspeed or srun"):
        configured({name: value for name, value in TORCHRUN.items() if name != missing})


@pytest.mark.parametrize("missing", ["SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_NODELIST", "SLURM_JOB_ID"])
def test_a_variable_that_srun_did_not_set_is_named(missing: str) -> None:
    with pytest.raises(LaunchError, match=f"^{missing} is not set, although .* srun"):
        configured({name: value for name, value in SLURM.items() if name != missing})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "four"}, "RANK is 'four', which is not a number"),
        ({"RANK": "4"}, "RANK=4 and LOCAL_RANK=1 must be below WORLD_SIZE=4"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT is '-1', which is not a number"),
    ],
)
def test_a_value_out_of_range_is_named(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        configured(TORCHRUN | wrong)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu01", "gpu01"),
        ("gpu01,gpu02", "gpu01"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("rack[2,4-5]-gpu[007-010].cluster", "rack2-gpu007.cluster"),
        ("node-a,node-b[1-3]", "node-a"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "gpu[", "[]", "a b"])
def test_a_node_list_without_a_first_host_is_an_error(nodes: str) -> None:
    with pytest.raises(LaunchError, match="no first host"):
        first_host(nodes)
