"""Run of trackio: in its local store (`TRACKIO_DIR`), or in a Space if `TRACKIO_SPACE_ID` is set."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio

from slap_fast.config.recipe import LoggingConfig
from slap_fast.training.metrics.trackers.tracker import TrackedRun


class TrackioRun:
    """Logs values over the training step.

    trackio finds the run to continue by its name, so a name that is not set by the user ends in random characters.
    """

    run: TrackedRun | None

    def __init__(
        self,
        output: Path,
        logging: LoggingConfig,
        config: dict[str, Any],
        *,
        start_step: int,
        resumed: TrackedRun | None,
    ) -> None:
        del start_step
        project = resumed.project if resumed else logging.project
        name = resumed.name if resumed else logging.run_name or f"{output.name}-{secrets.token_hex(3)}"
        self._run = trackio.init(project, name=name, config=config, resume="must" if resumed else "never", embed=False)
        if resumed and self._run.id != resumed.id:
            self._run.finish()
            raise RuntimeError(
                f"the newest run {name!r} of project {project!r} is of another output folder; "
                "give each its own logging.run_name"
            )
        self.run = TrackedRun(project, name, self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
