"""Small libraries for tests of searches: real recordings, embedded by a tiny model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from slap_fast.library.database import Database, WindowRow
from slap_fast.library.library import Library
from slap_fast.models.slap import SLAP
from slap_fast.models.windows import window_spans


def sound(seconds: float, frequency: float, *, rate: int = 16_000) -> np.ndarray:
    """A tone that becomes louder, `[S]` float64."""
    time = np.arange(int(seconds * rate)) / rate
    return np.sin(2 * np.pi * frequency * time) * np.linspace(0.1, 0.8, len(time))


def index_files(folder: Path, model: SLAP, recordings: Mapping[bytes, np.ndarray], *, files: Path) -> None:
    """Write recordings at 16 kHz as `files`/name, and a library of them into `folder`."""
    model.save_pretrained(folder.parent / "model")
    Library(folder, model=folder.parent / "model").close()
    files.mkdir(exist_ok=True)
    with Database(folder, write=True) as database:
        for name, samples in recordings.items():
            path = os.fsencode(files) + b"/" + name
            with open(path, "wb") as file:
                soundfile.write(file, samples, 16_000, format="WAV")
            decoded = soundfile.read(path, dtype="float32")[0]  # rounded to 16 bits
            spans = window_spans(len(decoded), 160_000, 80_000)
            if 160_000 < len(decoded) <= 480_000:
                spans.append((0, len(decoded)))
            embedded = [
                model.encode_audio([decoded[begin:end]], sampling_rate=16_000, long="whole").numpy()[0]
                for begin, end in spans
            ]
            rows = [
                WindowRow(begin / 16_000, end / 16_000, end - begin == len(decoded), embedding)
                for (begin, end), embedding in zip(spans, embedded, strict=True)
            ]
            status = os.stat(path)
            number = database.begin_recording(
                os.fsdecode(path), "", size=status.st_size, mtime_ns=status.st_mtime_ns, digest=name
            )
            seconds = len(decoded) / 16_000
            database.complete_recording(number, rows, seconds=seconds, embedding=embedded[-1])
