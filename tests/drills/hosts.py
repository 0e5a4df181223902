"""Runs on several hosts, which are namespaces of Linux: each has a network, a name and process numbers of its own.

`python -m tests.drills.hosts` needs root and iproute2. It starts ranks by environment variables, as srun would, and by
torchrun; kills a rank of one host; cuts a host off the network, from which the run has to end in bounded time; and lets
torchrun go on with the hosts that remain.
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

from tests.drills.processes import DrillFailed, Marked, send, wait
from tests.drills.recovery import MINUTE, START_UP, TIMEOUT, Records
from tests.training.ranks import ROOT, environment
from tests.training.tiny_run import write_dataset, write_recipe

PORT = 29400
SCRIPT = str(ROOT / "slap_fast" / "train.py")


class Hosts:
    """`host1`, `host2`, ... with the addresses 10.77.0.1, 10.77.0.2, ... on a bridge that leads nowhere else."""

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
            # `ip netns exec` lays these files over those in /etc.
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

    def cut_off(self, host: int) -> None:
        """The network is gone, and nobody is told: connections stay open and silent."""
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
    """One run on several hosts; what its processes say is in a file a host."""

    def __init__(self, hosts: Hosts, folder: Path, arguments: Sequence[str]) -> None:
        self.hosts, self._folder = hosts, folder
        self.marked, self.run = Marked(), Records(folder / "run")
        self._arguments = [*arguments, f"training.output={folder / 'run'}"]
        self.started: dict[int, list[subprocess.Popen[bytes]]] = {}
        folder.mkdir()

    def by_environment(self, ranks_a_host: int, described: Callable[[int, int, int], dict[str, str]]) -> None:
        """Start every rank by itself; `described(host, local_rank, ranks)` are its variables."""
        for host in self.hosts.numbers:
            for local_rank in range(ranks_a_host):
                variables = described(host, local_rank, ranks_a_host * len(self.hosts.numbers))
                self._start(host, [sys.executable, SCRIPT], variables)

    def by_torchrun(self, ranks_a_host: int, nodes: str, *flags: str) -> None:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"host1:{PORT}", "--rdzv-id", "drill"]
        for host in self.hosts.numbers:
            shape = ["--nnodes", nodes, "--nproc-per-node", str(ranks_a_host)]
            self._start(host, [sys.executable, "-m", "torch.distributed.run", *shape, *meeting, *flags, SCRIPT], {})

    def by_node_rank(self) -> None:
        """torchrun as in an indexed Job of Kubernetes."""
        for host in self.hosts.numbers:
            shape = ["--nnodes", str(len(self.hosts.numbers)), "--nproc-per-node", "1", "--node-rank", str(host - 1)]
            where = ["--master-addr", "host1", "--master-port", str(PORT)]
            self._start(host, [sys.executable, "-m", "torch.distributed.run", *shape, *where, SCRIPT], {})

    def _start(self, host: int, command: Sequence[str], variables: dict[str, str]) -> None:
        process = self.hosts.start(
            host, [*command, *self._arguments], self.log(host), variables | self.marked.environment
        )
        self.started.setdefault(host, []).append(process)

    def log(self, host: int) -> Path:
        return self._folder / f"host{host}.log"

    def words(self, host: int) -> str:
        return self.log(host).read_text(errors="replace")

    def reach(self, step: int) -> None:
        wait(lambda: self.run.newest() >= step, START_UP, f"step {step} of {self._folder}")

    def end(self, timeout: float, hosts: Sequence[int] | None = None) -> list[int]:
        """Exit codes, once all that was started on these hosts has ended; those of all hosts by default."""
        processes = [each for host in hosts or self.hosts.numbers for each in self.started[host]]
        wait(lambda: all(each.poll() is not None for each in processes), timeout, f"the end of {self._folder}")
        return [each.wait() for each in processes]

    def kill(self) -> None:
        self.marked.kill()
        for processes in self.started.values():
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
    """Four tasks of srun on two hosts, from start to model."""
    began = time.monotonic()
    cluster.by_environment(2, slurm)
    _require(cluster.end(START_UP) == [0] * 4, "four ranks did not all end well")
    return {"seconds": _since(began)}


def starts_by_node_rank(cluster: Cluster) -> dict[str, float]:
    """One torchrun a host, each told its number, from start to model."""
    began = time.monotonic()
    cluster.by_node_rank()
    _require(cluster.end(START_UP) == [0, 0], "torchrun did not end well on both hosts")
    return {"seconds": _since(began)}


def survives_a_killed_rank(cluster: Cluster) -> dict[str, float]:
    """torchrun starts all ranks of both hosts again, and ends with the model."""
    cluster.by_torchrun(1, "2", "--max-restarts", "3")
    cluster.reach(4)
    began, life = time.monotonic(), cluster.run.incarnation()
    send(cluster.marked.ranks()[1], signal.SIGKILL)
    wait(lambda: cluster.run.incarnation() != life, START_UP, "both hosts go on")
    went_on = _since(began)
    _require(cluster.end(START_UP) == [0, 0], "torchrun did not end well on both hosts")
    return {"went on after": went_on}


def ends_when_a_host_is_cut_off(cluster: Cluster) -> dict[str, float]:
    """Each side names the other and ends, though no connection is closed."""
    cluster.by_environment(1, plain)
    cluster.reach(4)
    began = time.monotonic()
    cluster.hosts.cut_off(2)
    codes = cluster.end(MINUTE)
    ended = _since(began)
    _require(0 not in codes, f"exit codes {codes}")
    for host, other in ((1, r"rank 1 \(host host2, .*\) has not answered"), (2, r"rank 0 \(host host1, .*\) has not")):
        _require(re.search(other, cluster.words(host)) is not None, f"host{host} does not name the other")
    return {"ended after": ended}


def goes_on_with_the_hosts_that_remain(cluster: Cluster) -> dict[str, float]:
    """torchrun with `--nnodes 1:2` goes on with the host that is left, which keeps the meeting point.

    On the host that is cut off all ranks end, while torchrun goes on looking for the meeting point.
    """
    cluster.by_torchrun(1, "1:2", "--max-restarts", "3")
    cluster.reach(4)
    began, life = time.monotonic(), cluster.run.incarnation()
    cluster.hosts.cut_off(2)
    wait(lambda: 1 not in cluster.marked.ranks(), MINUTE, "the rank that is cut off ends")
    ended = _since(began)
    wait(lambda: cluster.run.incarnation() != life, START_UP, "the host that is left goes on")
    went_on = _since(began)
    _require(cluster.end(START_UP, [1]) == [0], "the host that is left did not end well")
    return {"the rank that is cut off ended after": ended, "went on after": went_on}


DRILLS = (
    starts_by_variables,
    starts_by_node_rank,
    survives_a_killed_rank,
    ends_when_a_host_is_cut_off,
    goes_on_with_the_hosts_that_remain,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=f"of {', '.join(map(_name, DRILLS))}; default: all")
    chosen = parser.parse_args().drills
    # Leave nothing behind when told to stop, either.
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
                    said = "\n".join(f"host{host}:\n{cluster.words(host)[-6000:]}" for host in hosts.numbers)
                    print(f"{_name(drill)} failed: {failure}\n{said}", file=sys.stderr)
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
