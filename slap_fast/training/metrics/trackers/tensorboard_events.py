"""TensorBoard event files in `<output>/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slap_fast.config.recipe import LoggingConfig
from slap_fast.errors import MissingExtraError
from slap_fast.training.metrics.trackers.tracker import TrackedRun


class TensorboardEvents:
    """Writes scalars. TensorBoard itself replaces the steps that a resumed run repeats (`purge_step`)."""

    run: TrackedRun | None = None

    def __init__(
        self,
        output: Path,
        logging: LoggingConfig,
        config: dict[str, Any],
        *,
        start_step: int,
        resumed: TrackedRun | None,
    ) -> None:
        del logging, config, resumed
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError('it is not installed: pip install "slap-fast[train]"') from error
        self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=start_step + 1, flush_secs=30)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()
