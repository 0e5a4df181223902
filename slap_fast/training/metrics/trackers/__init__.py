"""Experiment trackers: TensorBoard, trackio and Weights & Biases receive the values that rank 0 logs.

log.jsonl does not depend on them: a tracker that fails is reported once and left out, and training goes on. A run that
resumes continues the same run of each tracker; its name and id are in `trackers.json` of the output folder. Steps that
were logged before an interruption and are trained again are not sent twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from slap_fast.config.recipe import LoggingConfig
from slap_fast.errors import MissingExtraError, one_line
from slap_fast.runtime.durable_files import replace_text
from slap_fast.training.metrics.trackers.tracker import TrackedRun, Tracker

Kind = Literal["steps", "scores"]
"""Kinds of records: values of a step, and scores of the model after it."""

STATE = "trackers.json"
# The other ranks wait for rank 0 at the end of a run, at most `training.timeout`; an upload must not take that long.
_CLOSE_SECONDS = 60.0


class OpenTracker(Protocol):
    def __call__(
        self,
        output: Path,
        logging: LoggingConfig,
        config: dict[str, Any],
        *,
        start_step: int,
        resumed: TrackedRun | None,
    ) -> Tracker: ...


def require_trackers(logging: LoggingConfig) -> None:
    """
    Raises:
        MissingExtraError: a tracker that the configuration names is not installed.
    """
    # A folder named wandb, as the library leaves behind, is found as a package without a file.
    specs = {name: find_spec(name) for name in logging.trackers if name != "tensorboard"}
    if missing := [name for name, spec in specs.items() if spec is None or spec.origin is None]:
        raise MissingExtraError(
            f"logging.tracker is {missing[0]!r}, which is not installed: "
            'pip install "slap-fast[trackers]", or set logging.tracker=tensorboard'
        )


class Trackers:
    """The open trackers of a run.

    Args:
        config: the run's configuration, as nested mappings.
        start_step: steps trained so far; with 0, each tracker starts a new run.
        logged: the last step of each kind of record that was logged before the run resumed.
        say: prints a message.
    """

    def __init__(
        self,
        output: Path,
        logging: LoggingConfig,
        config: dict[str, Any],
        *,
        start_step: int,
        logged: Mapping[Kind, int],
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}
        self._sent: dict[str, Mapping[Kind, int]] = {}
        state = output / STATE
        earlier = _read_state(state) if start_step else {}
        for name in logging.trackers:
            resumed = earlier.get(name)
            try:
                tracker = _opener(name)(output, logging, config, start_step=start_step, resumed=resumed)
            except Exception as error:  # libraries of many kinds, networks, logins
                self._report(name, error)
                continue
            self._open[name] = tracker
            if resumed is not None:
                self._sent[name] = logged
                if (last := logged.get("steps", 0)) > start_step:
                    say(f"{name} has the steps until {last} already; as trained again they are in log.jsonl alone")
        found = earlier | {name: tracker.run for name, tracker in self._open.items() if tracker.run is not None}
        if found or state.exists():
            replace_text(state, json.dumps({name: asdict(run) for name, run in found.items()}, indent=2) + "\n")

    def log(self, kind: Kind, record: Mapping[str, Any]) -> None:
        """Send the values of a record of log.jsonl that are not null."""
        step = record["step"]
        present = {key: value for key, value in record.items() if key != "step" and value is not None}
        for name, tracker in list(self._open.items()):
            if step <= self._sent.get(name, {}).get(kind, -1):
                continue
            try:
                tracker.log(step, present)
            except Exception as error:
                del self._open[name]
                self._report(name, error)

    def close(self) -> None:
        """Wait until the trackers have sent what they hold, at most a minute each."""
        for name, tracker in self._open.items():
            failures: list[Exception] = []
            closing = threading.Thread(target=_close, args=(tracker, failures), name=f"close {name}", daemon=True)
            closing.start()
            closing.join(_CLOSE_SECONDS)
            if closing.is_alive():
                self._say(f"{name}: not everything was sent within {_CLOSE_SECONDS:.0f} s; log.jsonl is complete")
            for error in failures:
                self._report(name, error)
        self._open = {}

    def _report(self, name: str, error: Exception) -> None:
        self._say(f"{name} failed and is left out from here on ({one_line(error)}); log.jsonl is complete")


def _opener(name: str) -> OpenTracker:
    # Each module imports its library.
    if name == "wandb":
        from slap_fast.training.metrics.trackers.wandb_run import WandbRun

        return WandbRun
    if name == "trackio":
        from slap_fast.training.metrics.trackers.trackio_run import TrackioRun

        return TrackioRun
    from slap_fast.training.metrics.trackers.tensorboard_events import TensorboardEvents

    return TensorboardEvents


def _close(tracker: Tracker, failures: list[Exception]) -> None:
    try:
        tracker.close()
    except Exception as error:
        failures.append(error)


def _read_state(path: Path) -> dict[str, TrackedRun]:
    """The runs of an earlier part of this run; empty if the file is missing or damaged."""
    try:
        return {name: TrackedRun(**run) for name, run in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
