"""Multi-host drill on Linux namespaces: each host has its own network, host name and process ids.

`python -m tests.drills.hosts` needs root and iproute2. It starts ranks by environment variables, as srun does, and by
torchrun; kills a rank of one host; disconnects a host from the network, after which the run must end in bounded time;
and lets torchrun continue with the remaining hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.drills.processes import DrillFailed, MarkedProcesses, send, wait
from tests.drills.recovery import MINUTE, START_UP, TIMEOUT, RunOutput
from tests.training.ranks import ROOT, environment
from tests.training.tiny_run import write_dataset, write_recipe

PORT = 29400
SCRIPT = str(ROOT / "slap_fast" / "train.py")


class Hosts:
    """`host1`, `host2`, ... with the addresses 10.77.0.1, 10.77.0.2, ... on an isolated bridge."""

    def __init__(self, count: int) -> None:
        self.numbers = list(range(1, count + 1))
        self._switch = self._namespace(0)

    def __enter__(self) -> Hosts:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        names = "".join(f"{address(host)} host{host}\n" for host in self.numbers)
        for host in self.numbers:
            own, port = self._namespace(host), f"port{host}"
            # `ip netns exec` mounts these files over those in /etc.
            _etc(own).mkdir(parents=True)
            (_etc(own) / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            _ip("netns", "add", own)
            _ip("link", "add", "eth0", "netns", own, "type", "veth", "peer", "name", port, "netns", self._switch)
            _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", own, "address", "add", f"{address(host)}/24", "dev", "eth0")
            _ip("-n", own, "link", "set", "eth0", "up")
            _ip("-n", own, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error: object) -> None:
        for host in (*self.numbers, 0):
            subprocess.run(["ip", "netns", "delete", self._namespace(host)], check=False)
            shutil.rmtree(_etc(self._namespace(host)), ignore_errors=True)

    def disconnect(self, host: int) -> None:
        """Drop the network silently: connections stay open, and no packet arrives."""
        _ip("-n", self._switch, "link", "set", f"port{host}", "down")

    def start(self, host: int, command: Sequence[str], log: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        inside = f"hostname host{host} && exec {shlex.join(command)}"
        namespaces = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside]
        with log.open("ab") as stream:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._namespace(host), *namespaces],
                stdout=stream,
                stderr=stream,
                env=environment(**variables),
                cwd=ROOT,
                start_new_session=True,
            )

    def _namespace(self, host: int) -> str:
        return f"slap-{os.getpid()}-{host}"


class Cluster:
    """One run on several hosts, with one output file per host."""

    def __init__(self, hosts: Hosts, folder: Path, arguments: Sequence[str]) -> None:
        self.hosts, self._folder = hosts, folder
        self.marked, self.run = MarkedProcesses(), RunOutput(folder / "run")
        self._arguments = [*arguments, f"training.output={folder / 'run'}"]
        self._processes: dict[int, list[subprocess.Popen[bytes]]] = {}
        folder.mkdir()

    def start_by_environment(
        self, ranks_per_host: int, variables_of: Callable[[int, int, int], dict[str, str]]
    ) -> None:
        """Start each rank separately, with the variables `variables_of(host, local_rank, world_size)`."""
        for host in self.hosts.numbers:
            for local_rank in range(ranks_per_host):
                variables = variables_of(host, local_rank, ranks_per_host * len(self.hosts.numbers))
                self._start(host, [sys.executable, SCRIPT], variables)

    def start_by_torchrun(self, ranks_per_host: int, nodes: str, *flags: str) -> None:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"host1:{PORT}", "--rdzv-id", "drill"]
        for host in self.hosts.numbers:
            shape = ["--nnodes", nodes, "--nproc-per-node", str(ranks_per_host)]
            self._start(host, [sys.executable, "-m", "torch.distributed.run", *shape, *meeting, *flags, SCRIPT], {})

    def start_by_node_rank(self) -> None:
        """Start torchrun on each host with a node rank, as in an indexed Job of Kubernetes."""
        for host in self.hosts.numbers:
            shape = ["--nnodes", str(len(self.hosts.numbers)), "--nproc-per-node", "1", "--node-rank", str(host - 1)]
            where = ["--master-addr", "host1", "--master-port", str(PORT)]
            self._start(host, [sys.executable, "-m", "torch.distributed.run", *shape, *where, SCRIPT], {})

    def _start(self, host: int, command: Sequence[str], variables: dict[str, str]) -> None:
        process = self.hosts.start(
            host, [*command, *self._arguments], self.log(host), variables | self.marked.environment
        )
        self._processes.setdefault(host, []).append(process)

    def log(self, host: int) -> Path:
        return self._folder / f"host{host}.log"

    def printed(self, host: int) -> str:
        return self.log(host).read_text(errors="replace")

    def reach(self, step: int) -> None:
        wait(lambda: self.run.newest() >= step, START_UP, f"step {step} of {self._folder}")

    def end(self, timeout: float, hosts: Sequence[int] | None = None) -> list[int]:
        """Wait until all processes started on these hosts (default: all hosts) have ended; returns their exit codes."""
        processes = [each for host in hosts or self.hosts.numbers for each in self._processes[host]]
        wait(lambda: all(each.poll() is not None for each in processes), timeout, f"the end of {self._folder}")
        return [each.wait() for each in processes]

    def kill(self) -> None:
        self.marked.kill()
        for processes in self._processes.values():
            for process in processes:
                process.kill()
                process.wait()


def address(host: int) -> str:
    return f"10.77.0.{host}"


def plain(host: int, local_rank: int, ranks: int) -> dict[str, str]:
    local = ranks // 2
    return {
        "RANK": str((host - 1) * local + local_rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": "host1",
        "MASTER_PORT": str(PORT),
    }


def slurm(host: int, local_rank: int, ranks: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": plain(host, local_rank, ranks)["RANK"],
        "SLURM_STEP_NUM_TASKS": str(ranks),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_STEP_NODELIST": "host[1-2]",
    }


def starts_by_variables(cluster: Cluster) -> dict[str, float]:
    """Four srun tasks on two hosts, from start to model."""
    began = time.monotonic()
    cluster.start_by_environment(2, slurm)
    _require(cluster.end(START_UP) == [0] * 4, "not all four ranks succeeded")
    return {"seconds": _since(began)}


def starts_by_node_rank(cluster: Cluster) -> dict[str, float]:
    """One torchrun per host, with node ranks, from start to model."""
    began = time.monotonic()
    cluster.start_by_node_rank()
    _require(cluster.end(START_UP) == [0, 0], "torchrun did not succeed on both hosts")
    return {"seconds": _since(began)}


def survives_a_killed_rank(cluster: Cluster) -> dict[str, float]:
    """torchrun restarts all ranks of both hosts, and ends with the model."""
    cluster.start_by_torchrun(1, "2", "--max-restarts", "3")
    cluster.reach(4)
    began, inode = time.monotonic(), cluster.run.log_inode()
    send(cluster.marked.ranks()[1], signal.SIGKILL)
    wait(lambda: cluster.run.log_inode() != inode, START_UP, "both hosts resume")
    resumed = _since(began)
    _require(cluster.end(START_UP) == [0, 0], "torchrun did not succeed on both hosts")
    return {"resumed after": resumed}


def ends_when_a_host_is_disconnected(cluster: Cluster) -> dict[str, float]:
    """Each side reports the other and ends, although no connection is closed."""
    cluster.start_by_environment(1, plain)
    cluster.reach(4)
    began = time.monotonic()
    cluster.hosts.disconnect(2)
    codes = cluster.end(MINUTE)
    ended = _since(began)
    _require(0 not in codes, f"exit codes {codes}")
    for host, other in ((1, r"rank 1 \(host host2, .*\) has not answered"), (2, r"rank 0 \(host host1, .*\) has not")):
        _require(re.search(other, cluster.printed(host)) is not None, f"host{host} does not report the other")
    return {"ended after": ended}


def continues_with_the_remaining_hosts(cluster: Cluster) -> dict[str, float]:
    """torchrun with `--nnodes 1:2` continues on the remaining host, which has the rendezvous endpoint.

    On the disconnected host all ranks end, while torchrun keeps looking for the rendezvous endpoint.
    """
    cluster.start_by_torchrun(1, "1:2", "--max-restarts", "3")
    cluster.reach(4)
    began, inode = time.monotonic(), cluster.run.log_inode()
    cluster.hosts.disconnect(2)
    wait(lambda: 1 not in cluster.marked.ranks(), MINUTE, "the disconnected rank ends")
    ended = _since(began)
    wait(lambda: cluster.run.log_inode() != inode, START_UP, "the remaining host resumes")
    resumed = _since(began)
    _require(cluster.end(START_UP, [1]) == [0], "the remaining host did not succeed")
    return {"the disconnected rank ended after": ended, "resumed after": resumed}


DRILLS = (
    starts_by_variables,
    starts_by_node_rank,
    survives_a_killed_rank,
    ends_when_a_host_is_disconnected,
    continues_with_the_remaining_hosts,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=f"of {', '.join(map(_name, DRILLS))}; default: all")
    chosen = parser.parse_args().drills
    # On SIGTERM too, leave the `with` blocks and remove everything.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="hosts-") as name:
        folder = Path(name)
        (folder / "source").mkdir()
        dataset = write_dataset(folder / "source", folder / "dataset")
        recipe = write_recipe(folder / "tiny.yaml", steps=60, save_every=3, timeout=TIMEOUT)
        arguments = [f"recipe={recipe}", f"data.train={dataset}", "schedule.batch_size=4"]
        for drill in DRILLS:
            if chosen and _name(drill) not in chosen:
                continue
            with Hosts(2) as hosts:
                cluster = Cluster(hosts, folder / _name(drill), arguments)
                try:
                    print(json.dumps({"drill": _name(drill), **drill(cluster)}), flush=True)
                except DrillFailed as failure:
                    output = "\n".join(f"host{host}:\n{cluster.printed(host)[-6000:]}" for host in hosts.numbers)
                    print(f"{_name(drill)} failed: {failure}\n{output}", file=sys.stderr)
                    return 1
                finally:
                    cluster.kill()
    return 0


def _name(drill: Callable[..., object]) -> str:
    return drill.__name__.replace("_", "-")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DrillFailed(otherwise)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)


def _etc(namespace: str) -> Path:
    return Path("/etc/netns") / namespace


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
