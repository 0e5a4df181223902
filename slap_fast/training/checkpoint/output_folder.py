"""The output folder of a run: one run at a time, and what a finished one is asked for."""

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
from slap_fast.training.checkpoint import files
from slap_fast.training.checkpoint.continuation import recipe_changes

LOCK = ".lock"
# A run that was just killed may take so long to let go.
_PATIENCE = 10.0
# File systems without locks; a run there has to do without.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class OutputError(SlapFastError, ValueError):
    """The output folder is another run's, or holds a finished one."""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Makes `output` and keeps a second run out of it; the lock dies with the process.

    Raises:
        OutputError: another run holds it.
        OSError: the folder cannot be made or written.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _PATIENCE
        while not _lock(file.fileno()):
            if time.monotonic() > deadline:
                file.seek(0)
                raise OutputError(
                    f"{output}: another run is training here ({file.read().strip() or 'it does not say which'}); wait "
                    "until it ends, stop it, or choose another training.output"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def finished_steps(config: RunConfig) -> int | None:
    """The steps of a run that is complete and has nothing left to do; None where there is something to do.

    Raises:
        OutputError: the complete run is of another recipe; or more steps are asked of it, and its last checkpoint is
            gone.
    """
    output = Path(config.efficiency.training.output)
    if not (output / "model").exists():
        return None
    found = files.newest(output / "checkpoints")
    if found is not None and config.recipe.schedule.steps > found[1].step:
        return None
    saved = _text(output / "config.yaml") if found is None else found[1].config
    if changed := [] if saved is None else recipe_changes(saved, to_yaml(config)):
        gone = " Its checkpoints are gone, so it cannot go on." if found is None else ""
        raise OutputError(
            f"{output / 'model'} is complete, but of another recipe: {', '.join(changed)}.{gone} Choose another "
            "training.output to train again"
        )
    return config.recipe.schedule.steps


def set_model_aside(output: Path, step: int) -> str | None:
    """Move the model of a run that goes on after its end; what there is to say about it."""
    model = output / "model"
    if not model.exists():
        return None
    kept, count = output / f"model-step-{step:08d}", 1
    while kept.exists():
        count += 1
        kept = output / f"model-step-{step:08d}-{count}"
    os.replace(model, kept)
    return f"the run was complete after step {step}; its model is kept as {kept}"


def _text(path: Path) -> str | None:
    """A configuration that a run wrote; None where there is none, or a text that is not one any more."""
    try:
        text = path.read_text(encoding="utf-8")
        return text if isinstance(yaml.safe_load(text)["recipe"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
