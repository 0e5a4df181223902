"""Best model of a run: keeps the weights with the highest score so far in their own folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slap_fast.models.slap import SLAP
from slap_fast.runtime.durable_files import replace_file

_RECORD = "best.json"


class BestModel:
    """Keeps the best model in `folder`: the files of `SLAP.save_pretrained`, and `best.json` with its step and scores.

    The folder is replaced atomically: a crash leaves the earlier model or the new one.

    Args:
        folder: need not exist.
        chosen_by: the evaluation settings; a stored model with other settings is replaced at the next evaluation.
    """

    def __init__(self, folder: Path, chosen_by: Mapping[str, Any]) -> None:
        self._folder = folder
        self._former = folder.with_name(f"{folder.name}.former")
        self._chosen_by = dict(chosen_by)
        self.step: int | None = None
        self.score: float | None = None

    def resume(self, step: int) -> str | None:
        """Restore the best score of a run that continues after `step`; returns a note for the log, or None."""
        # The earlier process crashed between the two renames of `offer`.
        if self._former.is_dir() and not self._folder.exists():
            self._former.rename(self._folder)
        if not self._folder.exists():
            return None
        if step == 0:
            return f"{self._folder} is of another run; the first evaluation of this one replaces it"
        try:
            record = json.loads((self._folder / _RECORD).read_text(encoding="utf-8"))
            score, best_step, chosen_by = float(record["score"]), int(record["step"]), record["chosen_by"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{self._folder / _RECORD} cannot be read ({error}); the next evaluation replaces {self._folder}"
        if chosen_by != self._chosen_by:
            return f"{self._folder} was chosen by other evaluation settings; the next evaluation replaces it"
        self.score, self.step = score, best_step
        return None

    def offer(self, model: SLAP, step: int, score: float, scores: Mapping[str, float]) -> bool:
        """Save the model if its score is higher than that of all earlier ones; returns whether it was saved.

        Raises:
            OSError: it cannot be written; the earlier model is unchanged.
        """
        if self.score is not None and score <= self.score:
            return False
        partial = self._folder.with_name(f"{self._folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            model.save_pretrained(partial)
            record = {"step": step, "score": score, "chosen_by": self._chosen_by, "scores": dict(scores)}
            replace_file(partial / _RECORD, [(json.dumps(record, indent=2) + "\n").encode("utf-8")])
            shutil.rmtree(self._former, ignore_errors=True)
            if self._folder.exists():
                self._folder.rename(self._former)
            os.replace(partial, self._folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(self._former, ignore_errors=True)
        self.score, self.step = score, step
        return True
