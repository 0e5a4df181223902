"""Indexing: from files to a library that can be searched, against the model alone on ready waveforms.

"encode_audio" is the floor: the model on waveforms in memory, all cores, with the same windows and batches of its own
choice. Indexing lists the files, hashes, decodes and cuts them to windows, embeds these, stores them in SQLite and
starts and ends its processes. A step indexes all recordings into a library that has only its text tower. The embeddings
of some recordings are compared with those of `encode_audio` before. The model is the quickstart recipe's with 6 layers
in its audio tower: for a larger one, decoding matters less.

- clips of 5 s: 16 kHz FLAC, one window each.
- clips of 5 s at 48 kHz: stereo WAV, mixed down and resampled, which the ready waveforms of the floor are already.
- one recording: 16 kHz FLAC; windows of 10 s every 5 s, so each second is embedded twice. "x real time" counts once.

Files are in the page cache. Run it with `--no-memory`: `benchmarks/library_processes.py` measures the memory of all
processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.case import AUDIO_SECONDS, Case, Outputs, Peer, Run, Settings
from benchmarks.library_workload import (
    QUICKSTART,
    SAMPLE_RATE,
    clips_folder,
    fresh_library,
    long_recording,
    long_waveform,
    resampled_waveform,
    saved_model,
    waveform,
    work_folder,
)
from slap_fast.library.library import Library
from slap_fast.models.slap import SLAP
from slap_fast.models.windows import HOP_SECONDS, WINDOW_SECONDS, window_spans

TITLE = "Indexing recordings"

CHECKED = 20  # recordings
FLOOR = "encode_audio on ready waveforms"


@dataclass(frozen=True)
class Workload:
    """Recordings on disk and in memory.

    Attributes:
        name: of the folder.
        count: recordings.
        seconds: length of each.
        folder: makes `count` recordings of this length in a folder.
        clip: a recording as the model gets it, `[S]` float32, by number and length.
    """

    name: str
    count: int
    seconds: float
    folder: Callable[[Path, int], Path]
    clip: Callable[[int, float], np.ndarray] = waveform

    def files(self, count: int) -> Path:
        return self.folder(work_folder() / f"{self.name}-{count}", count)

    def waveforms(self, count: int) -> list[Tensor]:
        """What the model gets: recordings of at most 10 s, or the windows of a longer one."""
        if self.seconds <= WINDOW_SECONDS:
            return [torch.from_numpy(self.clip(number, self.seconds)) for number in range(count)]
        wave = torch.from_numpy(long_waveform(self.seconds))
        window, hop = int(WINDOW_SECONDS * SAMPLE_RATE), int(HOP_SECONDS * SAMPLE_RATE)
        return [wave[begin:end] for begin, end in window_spans(len(wave), window, hop)]


def cases(settings: Settings) -> list[Case]:
    clips, wide = (40, 8) if settings.quick else (10_000, 2_000)
    hours = 0.02 if settings.quick else 10
    return [
        _case(f"{clips:,} clips of 5 s", Workload("clips", clips, 5.0, partial(_flac, seconds=5.0)), 1e-3),
        _case(
            f"{wide:,} clips of 5 s at 48 kHz",
            Workload("wide", wide, 5.0, partial(_wav, seconds=5.0), resampled_waveform),
            1e-3,  # the samples in the file are rounded to 16 bits
        ),
        _case(
            f"one recording of {hours:g} h",
            Workload("long", 1, hours * 3600, lambda folder, _: long_recording(folder, hours * 3600)),
            1e-3,
        ),
    ]


def _flac(folder: Path, count: int, *, seconds: float) -> Path:
    return clips_folder(folder, count, seconds)


def _wav(folder: Path, count: int, *, seconds: float) -> Path:
    return clips_folder(folder, count, seconds, kind="wav")


def _case(name: str, workload: Workload, tolerance: float) -> Case:
    return Case(
        name=name,
        peers=(Peer(FLOOR, partial(_floor, workload)), Peer("slap-fast index", partial(_index, workload))),
        baseline=FLOOR,
        reference=partial(_reference, workload),
        tolerance=tolerance,
        work={AUDIO_SECONDS: workload.count * workload.seconds},
        facts={"recordings": workload.count, "seconds of each": workload.seconds},
    )


def _model() -> Path:
    return saved_model(QUICKSTART, work_folder() / "model")


def _reference(workload: Workload) -> Outputs:
    """The embeddings of the first recordings, each encoded on its own."""
    model = SLAP.from_pretrained(_model())
    waves = workload.waveforms(min(CHECKED, workload.count))
    rows = torch.cat([model.encode_audio([wave], sampling_rate=SAMPLE_RATE) for wave in waves])
    return {"embeddings": _of_recordings(workload, rows)}


def _of_recordings(workload: Workload, rows: Tensor) -> Tensor:
    """Embeddings of recordings from those of their windows."""
    if workload.seconds <= WINDOW_SECONDS:
        return rows
    return torch.nn.functional.normalize(rows.mean(0, keepdim=True), dim=1)


def _floor(workload: Workload) -> Run:
    model, waves = SLAP.from_pretrained(_model()), workload.waveforms(workload.count)

    def outputs() -> Outputs:
        some = waves if workload.count == 1 else waves[:CHECKED]
        return {"embeddings": _of_recordings(workload, model.encode_audio(some, sampling_rate=SAMPLE_RATE))}

    return Run(step=lambda: model.encode_audio(waves, sampling_rate=SAMPLE_RATE), outputs=outputs)


def _index(workload: Workload) -> Run:
    model, files = _model(), workload.files(workload.count)

    def index(folder: Path) -> np.ndarray:
        with Library(fresh_library(work_folder() / "library", model)) as library:
            report = library.add(folder)
            if report.failed:
                raise RuntimeError(f"not indexed: {report.failed[0]}")
            return library.embeddings()[1]

    def outputs() -> Outputs:
        return {"embeddings": torch.tensor(index(workload.files(min(CHECKED, workload.count))))}

    return Run(step=lambda: index(files), outputs=outputs)
