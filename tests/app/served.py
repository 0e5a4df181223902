"""A library of a few sounds, and the page of it in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import soundfile

from slap_fast.data.prepare.pipeline import prepare
from slap_fast.library.database import Database, WindowRow
from slap_fast.library.library import Library

RATE = 16_000
UNDECODABLE = os.fsdecode(b"caf\xe9 [x](y).wav")
HOSTILE = '<img src=x onerror="window.hacked=1">{{7}}${7*7} 🎵.wav'


def make_sounds(folder: Path) -> list[Path]:
    """Short noises in three folders, one of 45 s, one whose name is HTML, and one whose name is not UTF-8."""
    random = np.random.default_rng(0)
    paths = [folder / "field" / f"clip {number}.wav" for number in range(4)]
    paths += [folder / "studio" / "take.flac", folder / "long.wav", folder / "studio" / HOSTILE]
    paths += [folder / "old" / UNDECODABLE]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = 45 if path.name == "long.wav" else 3
        tone = np.sin(np.arange(seconds * RATE) * (0.05 + 0.02 * number)) * 0.3
        soundfile.write(os.fsencode(path), tone + random.normal(0, 0.05, len(tone)), RATE)
    return paths


def make_dataset(folder: Path) -> Path:
    """A prepared dataset of two clips."""
    random = np.random.default_rng(1)
    for name in ("rain", "wind"):
        (folder / "clips").mkdir(exist_ok=True)
        soundfile.write(folder / "clips" / f"{name}.wav", random.normal(0, 0.1, RATE), RATE)
        (folder / "clips" / f"{name}.txt").write_text(name)
    prepare(folder / "clips", folder / "dataset", workers=0, progress=False)
    return folder / "dataset"


def make_library(folder: Path, empty: Path, *, sounds: Sequence[Path] = ()) -> Path:
    """A copy of an empty library in `folder`, with `sounds`."""
    with Library(shutil.copytree(empty, folder / "library")) as library:
        for each in sounds:
            library.add(each, workers=0)
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
def served(
    library: Path, *options: str, environment: dict[str, str] | None = None, scratch: Path | None = None
) -> Iterator[Served]:
    """Run `slap-fast app` until it can be opened; afterwards it is stopped.

    Args:
        library: what is served.
        options: of the command.
        environment: more of its variables.
        scratch: folder for its temporary files; None: a new one, in which it must leave nothing.
    """
    with ExitStack() as cleaned:
        kept = scratch or Path(cleaned.enter_context(tempfile.TemporaryDirectory()))
        process = subprocess.Popen(
            [sys.executable, "-m", "slap_fast", "app", str(library), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(kept), **(environment or {})},
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
            yield Served(process, lines[-1].split()[1], kept)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(30)
        if scratch is None:
            left = sorted(path.relative_to(kept) for path in kept.rglob("*"))
            assert not left, left
