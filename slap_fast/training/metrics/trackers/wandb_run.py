"""Run of Weights & Biases, with its files in `<output>/wandb`.

`WANDB_MODE=offline` and the other variables of the library apply.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from slap_fast.config.recipe import LoggingConfig
from slap_fast.training.metrics.trackers.tracker import TrackedRun


class WandbRun:
    """Logs values over the training step.

    The step is a metric of its own and the axis of all others: the library's counter must not decrease, but scores of a
    checkpoint's step may follow later steps.
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
        run = resumed or TrackedRun(logging.project, logging.run_name or output.name, secrets.token_hex(8))
        # The captured console would contain every state of the progress bar.
        settings = wandb.Settings(console="off", login_timeout=60)
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(output),
            config=config,
            settings=settings,
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()
