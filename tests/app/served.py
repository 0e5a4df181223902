"""A library of a few sounds, and the page of it in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from slap_fast.library.database import Database, WindowRow
from slap_fast.library.library import Library
from tests.models.saved import tiny_slap

RATE = 16_000
HOSTILE = '<img src=x onerror="window.hacked=1">{{7}}${7*7} 🎵.wav'


def make_sounds(folder: Path) -> list[Path]:
    """Short noises in two folders, one of 45 s, and one whose name is HTML."""
    random = np.random.default_rng(0)
    paths = [folder / "field" / f"clip {number}.wav" for number in range(4)]
    paths += [folder / "studio" / "take.flac", folder / "long.wav", folder / "studio" / HOSTILE]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = 45 if path.name == "long.wav" else 3
        tone = np.sin(np.arange(seconds * RATE) * (0.05 + 0.02 * number)) * 0.3
        soundfile.write(path, tone + random.normal(0, 0.05, len(tone)), RATE)
    return paths


def make_library(folder: Path, *, sounds: Path | None) -> Path:
    """A library with a small model; of `sounds`, or empty."""
    tiny_slap().save_pretrained(folder / "model")
    with Library(folder / "library", model=folder / "model") as library:
        if sounds is not None:
            library.add(sounds, workers=0)
    return folder / "library"


def add_recording(library: Path, path: Path) -> None:
    """Add one recording, as an indexer does while the page is open."""
    status = path.stat()
    with Database(library, write=True) as database:
        embedding = np.zeros(int(database.meta["width"]), np.float32)
        embedding[0] = 1
        number = database.begin_recording(
            str(path), "", size=status.st_size, mtime_ns=status.st_mtime_ns, digest=bytes(16)
        )
        database.complete_recording(number, [WindowRow(0, 3, True, embedding)], seconds=3, embedding=embedding)


class Served:
    """A running page: its address, what it printed, and the folder of its temporary files."""

    def __init__(self, process: subprocess.Popen[str], address: str, scratch: Path) -> None:
        self.process = process
        self.address = address
        self.scratch = scratch

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


@contextmanager
def served(library: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """Run `slap-fast app` until it can be opened; afterwards it is stopped."""
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(
            [sys.executable, "-m", "slap_fast", "app", str(library), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": scratch, **(environment or {})},
        )
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("open http"):
                    break
            else:
                raise AssertionError("".join(lines))
            yield Served(process, lines[-1].split()[1], Path(scratch))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
