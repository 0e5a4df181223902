"""Worker process of indexing: embeds the recordings that it is sent, and ends with the process that started it.

Started by `WorkerPool` as a program of its own, not by multiprocessing: that would run the caller's main module again,
which a script without `if __name__ == "__main__"` and a notebook do not expect.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import NamedTuple

from slap_fast.errors import SlapFastError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.indexing.jobs import Job
from slap_fast.runtime.cpu import configure_cpu_environment


class Ready(NamedTuple):
    """The model is loaded: the digest of its weights."""

    weights: str


class Broken(NamedTuple):
    """The worker cannot go on: a message for people, or the traceback of a bug."""

    message: str
    bug: bool


def main() -> None:
    """Arguments of the program: descriptor of the connection, model, threads of PyTorch."""
    descriptor, model_name, threads = sys.argv[1:]
    connection = Connection(int(descriptor))
    configure_cpu_environment()
    jobs: queue.Queue[Job | None] = queue.Queue()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    try:
        _embed(connection, jobs, model_name, int(threads))
    except (SlapFastError, MemoryError) as error:
        connection.send(Broken(str(error) or type(error).__name__, False))
    except OSError as error:
        connection.send(Broken(str(error), False))
    except Exception:
        connection.send(Broken(traceback.format_exc(), True))


def _receive(connection: Connection, jobs: queue.Queue[Job | None]) -> None:
    """Pass jobs on. The connection ends when the process that started this one has ended, also if it was killed."""
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)  # also out of native code that runs for minutes


def _embed(connection: Connection, jobs: queue.Queue[Job | None], model_name: str, threads: int) -> None:
    import torch

    from slap_fast.library.indexing.embedding import embed_jobs
    from slap_fast.models.hub import model_folder
    from slap_fast.models.slap import SLAP

    torch.set_num_threads(threads)
    model = SLAP.from_pretrained(model_folder(model_name), towers="audio")
    # Read after it was loaded, and by now from memory: a model that is replaced between the two is noticed, too.
    connection.send(Ready(ModelIdentity.of(model_name).weights))
    for events in embed_jobs(model, iter(jobs.get, None)):
        connection.send(events)
