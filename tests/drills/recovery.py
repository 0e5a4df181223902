"""Recovery drill: kills, freezes and stops a run at random moments; the run must recover and end as an undisturbed one.

`python -m tests.drills.recovery --faults 50 --seed 0` prints one line of JSON per fault, and a table. The exit code is
1 if a fault cost more than the steps since the last checkpoint, hung for a minute or left a process behind, or if the
log differs from that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Settings
from benchmarks.harness.report import render
from benchmarks.harness.results import build_result, save_result
from slap_fast.training.checkpoint.folder import MANIFEST, Manifest, checkpoint_folders, read_manifest
from tests.drills.processes import DrillFailed, MarkedProcesses, send, wait
from tests.training.ranks import ROOT, environment
from tests.training.tiny_run import write_dataset, write_recipe

RANKS = 2
TIMEOUT = 10.0
MINUTE = 60.0
# Imports alone take ten seconds on two cores, and much longer on a busy machine.
START_UP = 180.0
STEPS_A_FAULT = 8
MOMENTS = ("step", "save", "start")
FAULTS = {
    "rank": "SIGKILL to one rank",
    "ranks": "SIGKILL to all ranks",
    "freeze": "SIGSTOP to one rank",
    "stop": "SIGTERM to the launcher",
    "launcher": "SIGKILL to the launcher",
    "everything": "SIGKILL to the launcher and all ranks",
}
COLUMNS = (
    "fault",
    "times",
    "of them while saving",
    "steps lost, at most",
    "named after, at most (s)",
    "all processes gone after, at most (s)",
    "went on after, median (s)",
    "at most (s)",
)
# torchrun restarts the ranks after these faults; after the others the drill restarts the launcher.
SURVIVED_BY_THE_LAUNCHER = ("rank", "ranks", "freeze")


class RunOutput:
    """The state of a run in its output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def records(self) -> dict[int, dict[str, Any]]:
        """Log records by step, without an incomplete last line."""
        try:
            lines = (self.output / "log.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return {}
        return {record["step"]: record for record in map(json.loads, lines)}

    def newest(self) -> int:
        """The last step in the log; 0 without one."""
        return max(self.records(), default=0)

    def log_inode(self) -> int:
        """Changes when a restarted run replaces the log; 0 without a log."""
        try:
            return (self.output / "log.jsonl").stat().st_ino
        except FileNotFoundError:
            return 0

    def saved(self) -> int:
        """The step of the newest complete checkpoint; 0 without one."""
        manifests = map(read_manifest, checkpoint_folders(self.output / "checkpoints"))
        return max((found.step for found in manifests if isinstance(found, Manifest)), default=0)

    def saving(self) -> bool:
        folders = checkpoint_folders(self.output / "checkpoints")
        return any(not (folder / MANIFEST).exists() for folder in folders)


class Run(RunOutput):
    """One run on this host with all its restarts, under torchrun."""

    def __init__(self, output: Path, arguments: Sequence[str], restarts: int) -> None:
        super().__init__(output)
        self.marked = MarkedProcesses()
        self._log = output.with_suffix(".log")
        flags = ["--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", str(restarts)]
        script = [str(ROOT / "slap_fast" / "train.py"), *arguments, f"training.output={output}"]
        self._command = [sys.executable, "-m", "torch.distributed.run", *flags, *script]
        self.launch()

    def launch(self) -> None:
        with self._log.open("ab") as stream:
            self.launcher = subprocess.Popen(
                self._command,
                stdout=stream,
                stderr=stream,
                env=environment(**self.marked.environment),
                cwd=ROOT,
                start_new_session=True,
            )

    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def finish(self, timeout: float) -> None:
        """Wait for a successful end."""
        try:
            code = self.launcher.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise DrillFailed(f"no end within {timeout:g} s") from error
        if code != 0 or not (self.output / "model").is_dir():
            raise DrillFailed(f"exit code {code}")
        wait(lambda: not self.marked.alive(), MINUTE, "no process is left after the end")


@dataclass
class FaultOutcome:
    """State of the run at a fault, and its recovery."""

    fault: str
    moment: str
    victims: int
    step: int
    saved: int
    gone_after: float | None = None
    named_after: float | None = None
    went_on_after: float | None = None
    continued_at: int = 0
    torn: int = 0

    @property
    def lost(self) -> int:
        """Steps that were in the log and were repeated."""
        return max(0, self.step - self.continued_at)


def inject_fault(
    run: Run, fault: str, moment: str, at_step: int, generator: random.Random, *, relaunch: bool = True
) -> FaultOutcome:
    """Inject one fault at `at_step` or later and wait for the recovery, or without `relaunch` for the end of the run.

    Raises:
        DrillFailed: processes remain after a minute, or the run does not resume, or resumes from a wrong step.
    """
    _await_moment(run, moment, at_step, generator)
    wait(lambda: bool(run.marked.ranks()), MINUTE, "ranks are started")
    ranks, printed, inode = run.marked.ranks(), len(run.printed()), run.log_inode()
    outcome = FaultOutcome(fault, moment, 0, run.newest(), run.saved())
    began = time.monotonic()
    victims = _victims(fault, run.launcher.pid, ranks, generator)
    outcome.victims = len(victims)
    for victim in victims:
        send(victim, {"freeze": signal.SIGSTOP, "stop": signal.SIGTERM}.get(fault, signal.SIGKILL))

    if fault not in SURVIVED_BY_THE_LAUNCHER:
        run.launcher.wait(MINUTE)
        wait(lambda: not run.marked.alive(), MINUTE, f"all ranks end after {FAULTS[fault]}")
        outcome.gone_after = _since(began)
        if fault != "everything" and moment != "start" and run.saved() < outcome.step:
            raise DrillFailed(f"{FAULTS[fault]}: {outcome.step} steps were done, but {run.saved()} are saved")
        if not relaunch:
            return outcome
        run.launch()
    elif fault == "freeze":
        # By its rank alone if it froze before the rendezvous; by torchrun if torchrun was about to stop it anyway.
        pids = f"({'|'.join(map(str, victims))})"
        reported = re.compile(
            rf"process {pids}\) has not answered|did not start within|Unable to shutdown process {pids} "
        )
        wait(lambda: reported.search(run.printed(), printed) is not None, MINUTE, "the frozen rank is reported")
        outcome.named_after = _since(began)

    def resumed() -> bool:
        taken_over = run.log_inode() not in (0, inode)
        return taken_over and (outcome.saved == 0 or "continuing after step" in run.printed()[printed:])

    wait(resumed, START_UP, "the run resumes")
    outcome.went_on_after = _since(began)
    if set(victims) & set(run.marked.alive()):
        raise DrillFailed(f"{FAULTS[fault]}: a victim still runs")

    new_output = run.printed()[printed:]
    continued = re.findall(r"continuing after step (\d+)", new_output)
    outcome.continued_at = int(continued[-1]) if continued else 0
    outcome.torn = new_output.count("passed over the checkpoint")
    if outcome.continued_at < outcome.saved:
        raise DrillFailed(f"the run resumed from an older checkpoint than the newest: {outcome}")
    return outcome


def _await_moment(run: Run, moment: str, at_step: int, generator: random.Random) -> None:
    wait(lambda: run.newest() >= at_step, START_UP, f"step {at_step}")
    if moment == "save":
        wait(run.saving, MINUTE, "a save begins", every=0.0005)
    elif moment == "step":
        time.sleep(generator.uniform(0.0, 0.2))
    else:
        # After the death of a rank torchrun restarts all ranks.
        for rank in list(run.marked.ranks().values())[:1]:
            send(rank, signal.SIGKILL)
        time.sleep(generator.uniform(0.0, 8.0))


def _victims(fault: str, launcher: int, ranks: dict[int, int], generator: random.Random) -> list[int]:
    victims = [] if fault in SURVIVED_BY_THE_LAUNCHER else [launcher]
    if fault in ("ranks", "everything"):
        victims += ranks.values()
    elif fault in ("rank", "freeze"):
        victims += [ranks[generator.choice(sorted(ranks))]]
    return victims


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)


def drill(folder: Path, plan: Sequence[tuple[str, str]], seed: int) -> list[FaultOutcome]:
    """Inject the faults of a plan of `(fault, moment)` one after the other; returns their outcomes.

    Raises:
        DrillFailed: steps were lost, the run hung, or processes were left behind.
    """
    generator = random.Random(seed)
    (folder / "source").mkdir()
    dataset = write_dataset(folder / "source", folder / "dataset")
    steps = STEPS_A_FAULT * (len(plan) + 1)
    recipe = write_recipe(folder / "tiny.yaml", steps=steps, save_every=3, timeout=TIMEOUT)
    arguments = [f"recipe={recipe}", f"data.train={dataset}"]
    straight = Run(folder / "straight", arguments, restarts=0)
    try:
        straight.finish(START_UP + 2 * steps)
    finally:
        straight.marked.kill()
    run = Run(folder / "struck", arguments, restarts=2 * len(plan))
    outcomes = []
    try:
        for number, (fault, moment) in enumerate(plan):
            outcomes.append(inject_fault(run, fault, moment, 2 + STEPS_A_FAULT * number, generator))
            print(json.dumps(asdict(outcomes[-1])), flush=True)
        run.finish(START_UP + 2 * steps)
    except DrillFailed as failure:
        raise DrillFailed(f"{failure}\n{run.printed()[-4000:]}") from failure
    finally:
        run.marked.kill()
    losses = [{step: record["loss"] for step, record in each.records().items()} for each in (run, straight)]
    if losses[0] != losses[1] or sorted(losses[0]) != list(range(1, steps + 1)):
        raise DrillFailed(f"the log differs from that of the undisturbed run: {losses}")
    return outcomes


def summarize(outcomes: Sequence[FaultOutcome]) -> dict[str, list[Any]]:
    """One row for each kind of fault and one for all: the `table` of a benchmark result."""
    kinds = {title: [each for each in outcomes if each.fault == fault] for fault, title in FAULTS.items()}
    rows = []
    for title, struck in {**kinds, "all": list(outcomes)}.items():
        if struck:
            saving, went_on = [each.moment == "save" for each in struck], [each.went_on_after for each in struck]
            row = [title, len(struck), sum(saving), max(each.lost for each in struck)]
            row += [_longest(each.named_after for each in struck), _longest(each.gone_after for each in struck)]
            rows.append([*row, statistics.median(_measured(went_on)), _longest(went_on)])
    return {"columns": list(COLUMNS), "rows": rows}


def _longest(seconds: Iterable[float | None]) -> float | None:
    return max(_measured(seconds), default=None)


def _measured(seconds: Iterable[float | None]) -> list[float]:
    return [value for value in seconds if value is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, help="how many (50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS), help="all by default")
    parser.add_argument("--out", type=Path, help="folder to write the table to, as a benchmark's result")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    moments = generator.choices(MOMENTS, weights=(4, 4, 2), k=options.faults)
    plan = [(generator.choice(options.kinds), moment) for moment in moments]
    # On SIGTERM too, leave the `with` blocks and remove everything.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        try:
            outcomes = drill(Path(folder), plan, options.seed)
        except DrillFailed as failure:
            print(f"failed: {failure}", file=sys.stderr)
            return 1
    settings = Settings(device="cpu", threads=RANKS)
    result = build_result("recovery", "Faults of a run on two ranks", [], settings) | {"table": summarize(outcomes)}
    print(render(result))
    if options.out is not None:
        save_result(result, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
