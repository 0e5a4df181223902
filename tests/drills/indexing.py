"""Indexing drill: kills `slap-fast index`, or one of its workers, at random moments, while searches run.

After each kill no process may be left, and what a search sees must be rows of recordings as an undisturbed library has
them, whole. When an indexing ends, its library must equal the undisturbed one; then the next begins.

`python -m tests.drills.indexing --kills 50 --seed 0` prints one line of JSON per kill. The exit code is 1 if a row was
wrong or missing, a search failed, or a process was left behind.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from slap_fast.library.database import Database
from slap_fast.library.library import Library
from slap_fast.library.text_tower import export_text_tower
from tests.drills.processes import DrillFailed, MarkedProcesses, send, wait
from tests.models.saved import tiny_slap
from tests.training.ranks import ROOT, environment

MINUTE = 60.0
TOLERANCE = 1e-6

Rows = dict[tuple[str, float, float, bool], np.ndarray]


class Indexing:
    """A folder of sounds, a library of it that was made without a disturbance, and one that is disturbed."""

    def __init__(
        self, folder: Path, *, short: int, long_seconds: int, text: Path | None = None, in_process: bool = False
    ) -> None:
        """
        Args:
            folder: empty.
            short: number of short recordings.
            long_seconds: length of the one long recording.
            text: exported text tower of the model; None: it is exported, which takes seconds.
            in_process: index undisturbed in this process; then `kill_once` has no times to choose from.
        """
        self.sounds, self.model = folder / "sounds", folder / "model"
        self.expected, self.library = folder / "expected", folder / "library"
        self.sounds.mkdir()
        tiny_slap(layers=1).save_pretrained(self.model)
        generator = np.random.default_rng(0)
        for number in range(short):
            noise = generator.uniform(-0.5, 0.5, int(16_000 * generator.uniform(1, 40)))
            soundfile.write(self.sounds / f"{number}.wav", noise, 16_000)
        with soundfile.SoundFile(self.sounds / "long.wav", "w", 16_000, 1) as file:
            for _ in range(0, long_seconds, 60):
                file.write(generator.uniform(-0.5, 0.5, 16_000 * 60))
        self._text = text or self._export(folder / "exported")
        self._begin(self.expected)
        self.start_up = self.seconds = 0.0
        if in_process:
            with Library(self.expected) as library:
                library.add(self.sounds, workers=0)
        else:
            self._measure()
        self.rows, self.recordings = read_rows(self.expected)
        self.begin_again()

    def _export(self, folder: Path) -> Path:
        with Library(folder, model=self.model) as library:
            export_text_tower(library.model, folder)
        return folder / "text"

    def _measure(self) -> None:
        """Index undisturbed, and note how long it takes until the first row, and from there."""
        began = time.monotonic()
        process = self.start(self.expected, MarkedProcesses())
        self.await_first(process, self.expected)
        self.start_up = time.monotonic() - began
        if process.wait(10 * MINUTE) != 0:
            raise DrillFailed("the undisturbed indexing failed")
        self.seconds = time.monotonic() - began - self.start_up

    def begin_again(self) -> None:
        """Put an empty library in the place of the disturbed one."""
        shutil.rmtree(self.library, ignore_errors=True)
        self._begin(self.library)

    def _begin(self, library: Path) -> None:
        """An empty library with a text tower, whose export takes longer than all else."""
        Library(library, model=self.model).close()
        shutil.copytree(self._text, library / "text")

    def await_first(self, process: subprocess.Popen[bytes], library: Path) -> None:
        """Wait until an indexing has stored something, or has ended."""
        with Database(library) as database:
            before = database.last_window(), sum(item.seconds for item in database.recordings())
            while process.poll() is None:
                if before != (database.last_window(), sum(item.seconds for item in database.recordings())):
                    break
                time.sleep(0.02)

    def start(self, library: Path, marked: MarkedProcesses) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "slap_fast", "index", library, "--model", self.model, self.sounds]
        return subprocess.Popen(
            [*map(str, command), "--workers", "2", "--quiet"],
            stdout=subprocess.DEVNULL,
            env=environment(**marked.environment),
            cwd=ROOT,
        )

    def check(self, *, complete: bool) -> int:
        """Compare what a search sees; returns the number of rows.

        Raises:
            DrillFailed: a row is wrong, or one of a visible recording is missing; with `complete`, any is missing.
        """
        rows, recordings = read_rows(self.library)
        visible = set(recordings)
        for key, embedding in rows.items():
            if key not in self.rows or np.abs(embedding - self.rows[key]).max() > TOLERANCE:
                raise DrillFailed(f"wrong row {key}")
        missing = [key for key in self.rows if key[0] in visible and key not in rows]
        if missing or (complete and rows.keys() != self.rows.keys()):
            raise DrillFailed(f"missing rows: {missing[:3] or sorted(self.rows.keys() - rows.keys())[:3]}")
        for path, embedding in recordings.items():
            if np.abs(embedding - self.recordings[path]).max() > TOLERANCE:
                raise DrillFailed(f"wrong embedding of {path}")
        return len(rows)


def read_rows(library: Path) -> tuple[Rows, dict[str, np.ndarray]]:
    """The windows that a search sees, and the embeddings of recordings, at one moment."""
    with Database(library) as database, database.snapshot():
        found, embeddings = database.recording_embeddings()
        names = {recording.id: recording.path for recording in found}
        rows: Rows = {}
        for ids, matrix in database.vectors():
            places = database.places(ids.tolist())
            for number, embedding in zip(ids.tolist(), matrix, strict=True):
                place = places[number]
                key = (names[place.recording], place.start, place.end, place.whole)
                if key in rows:
                    raise DrillFailed(f"twice: {key}")
                rows[key] = embedding
    return rows, dict(zip(names.values(), embeddings, strict=True))


class Searches:
    """Searches and compares without a pause, in a thread."""

    def __init__(self, indexing: Indexing) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self._indexing = indexing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._search)

    def __enter__(self) -> Searches:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _search(self) -> None:
        try:
            with Library(self._indexing.library) as library:
                while not self._stop.is_set():
                    for moment in library.search("a dog barks", top=5):
                        if moment.path not in self._indexing.recordings:
                            raise DrillFailed(f"found {moment}")
                    self._indexing.check(complete=False)
                    self.count += 1
                    time.sleep(0.2)
        except BaseException as error:
            self.error = error


def kill_once(
    indexing: Indexing, victim: str, generator: random.Random, *, after: float | None = None
) -> dict[str, object]:
    """Start an indexing, kill the `writer` or a `worker` at a random moment, and check what is left.

    Args:
        indexing: has the library that is disturbed.
        victim: which is killed.
        generator: chooses the moment, and the worker.
        after: seconds after the first row, instead of a random moment.

    Raises:
        DrillFailed: see `Indexing.check`; or a process is left, or an indexing that lost a worker did not end well.
    """
    marked = MarkedProcesses()
    starting = after is None and generator.random() < 0.2
    moment = generator.random() * (indexing.start_up if starting else indexing.seconds) if after is None else after
    with Searches(indexing) as searches:
        process = indexing.start(indexing.library, marked)
        try:
            if not starting:
                indexing.await_first(process, indexing.library)
            began = time.monotonic()
            while process.poll() is None and time.monotonic() - began < moment:
                time.sleep(0.005)
            workers = sorted(marked.alive().keys() - {process.pid})
            hit = process.poll() is None and (victim == "writer" or bool(workers))
            if hit:
                send(process.pid if victim == "writer" else generator.choice(workers), signal.SIGKILL)
            code = process.wait(10 * MINUTE)
            wait(lambda: not marked.alive(), 10.0, "all processes end")
        finally:
            marked.kill()
    if searches.error is not None:
        raise DrillFailed(f"a search failed: {searches.error!r}") from searches.error
    ended = code == 0
    if not ended and not (victim == "writer" and code == -signal.SIGKILL) and not (victim == "worker" and code == 2):
        raise DrillFailed(f"exit code {code} after a kill of the {victim}")
    if not hit and not starting:
        indexing.seconds *= 0.8  # the machine is not as busy as it was for the undisturbed one
    outcome: dict[str, object] = {"victim": victim, "while": "starting" if starting else "embedding"}
    outcome |= {"after": round(moment, 2), "hit": hit, "code": code, "searches": searches.count}
    outcome["rows"] = indexing.check(complete=ended)
    if ended:
        indexing.begin_again()
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        indexing = Indexing(Path(folder), short=30, long_seconds=3600)
        print(
            json.dumps(
                {
                    "start": round(indexing.start_up, 2),
                    "embedding": round(indexing.seconds, 2),
                    "rows": len(indexing.rows),
                }
            ),
            flush=True,
        )
        kills = 0
        while kills < options.kills:
            try:
                outcome = kill_once(indexing, generator.choice(("writer", "writer", "worker")), generator)
            except DrillFailed as error:
                print(f"failed: {error}", file=sys.stderr)
                return 1
            kills += bool(outcome["hit"])
            print(json.dumps(outcome), flush=True)
        if indexing.start(indexing.library, MarkedProcesses()).wait(10 * MINUTE) != 0:
            return 1
        print(json.dumps({"kills": kills, "rows at the end": indexing.check(complete=True)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
