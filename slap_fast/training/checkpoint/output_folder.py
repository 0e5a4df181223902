"""Output folder of a run: the lock that admits one run at a time, and the check of a completed run."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from slap_fast.config.loading import to_yaml
from slap_fast.config.recipe import RunConfig
from slap_fast.errors import SlapFastError
from slap_fast.training.checkpoint.compatibility import recipe_changes
from slap_fast.training.checkpoint.folder import newest_checkpoint

LOCK = ".lock"
# The processes of a killed run may hold the lock this long, in seconds.
_LOCK_TIMEOUT = 10.0
# Errors of file systems without locks, where a run proceeds without one.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class OutputError(SlapFastError, ValueError):
    """The output folder is in use by another run, or holds a completed one."""


@contextmanager
def lock_output_folder(output: Path) -> Iterator[None]:
    """Create `output` and lock it against a second run. The kernel releases the lock when the process dies.

    Raises:
        OutputError: another run holds the lock; names its process and host.
        OSError: the folder cannot be created or written.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                file.seek(0)
                raise OutputError(
                    f"{output}: another run is training here ({file.read().strip() or 'process unknown'}); wait "
                    "until it ends, stop it, or choose another training.output"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def finished_steps(config: RunConfig) -> int | None:
    """The steps of a completed run; None if there are steps to train.

    Raises:
        OutputError: the completed run is of another recipe, which includes one with more steps if its checkpoints are
            gone.
    """
    output = Path(config.efficiency.training.output)
    if not (output / "model").exists():
        return None
    found = newest_checkpoint(output / "checkpoints")
    if found is not None and config.recipe.schedule.steps > found[1].step:
        return None
    saved = _read_config(output / "config.yaml") if found is None else found[1].config
    if changed := [] if saved is None else recipe_changes(saved, to_yaml(config)):
        gone = " Its checkpoints are gone, so it cannot be continued." if found is None else ""
        raise OutputError(
            f"{output / 'model'} is complete, but of another recipe: {', '.join(changed)}.{gone} Choose another "
            "training.output to train again"
        )
    return config.recipe.schedule.steps


def saved_config(output: Path) -> str | None:
    """The configuration, as YAML, of the run that would be continued or is complete in `output`; None for a new run."""
    found = newest_checkpoint(output / "checkpoints")
    if found is not None:
        return found[1].config
    return _read_config(output / "config.yaml") if (output / "model").exists() else None


def set_model_aside(output: Path, step: int) -> str | None:
    """Rename the model of a completed run that trains more steps; returns a note for the log."""
    model = output / "model"
    if not model.exists():
        return None
    kept, count = output / f"model-step-{step:08d}", 1
    while kept.exists():
        count += 1
        kept = output / f"model-step-{step:08d}-{count}"
    os.replace(model, kept)
    return f"the run was complete after step {step}; its model is kept as {kept}"


def _read_config(path: Path) -> str | None:
    """The text of a run's configuration; None if the file is missing or not a configuration."""
    try:
        text = path.read_text(encoding="utf-8")
        return text if isinstance(yaml.safe_load(text)["recipe"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
