"""Frame-level probe with a model whose dense features are the loudness of each column."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slap_fast.data.format.index import ClipIndex
from slap_fast.data.labeled import LabelError
from slap_fast.evaluation.probe.frames import frame_probe
from slap_fast.models.slap import SLAP
from tests.data.builders import StoredClip, encode, write_dataset
from tests.models.builders import TINY

COLUMN = 2560  # samples: 160 ms
LEVELS = {"tone": 0.25, "dog_bark": 0.5}


class LoudnessColumns(SLAP):
    def encode_audio(self, audio: Any, **options: Any) -> Any:
        assert options["dense"]
        found: list[Tensor] = []
        for clip in audio:
            columns = [np.abs(clip[at : at + COLUMN]).mean() for at in range(0, len(clip), COLUMN)]
            found.append(torch.tensor([[0.1 < level < 0.4, level > 0.4] for level in columns]).float())
        return found


def clip(
    seconds: float, *events: tuple[str, float, float], sounding: tuple[tuple[str, float, float], ...] = ()
) -> StoredClip:
    """A clip with these annotated events (name, onset, offset); `sounding`: what is heard, if it is something else."""
    pcm = np.zeros(int(16_000 * seconds), np.float32)
    for name, start, end in sounding or events:
        pcm[int(16_000 * start) : int(16_000 * end)] = LEVELS.get(name, 0)
    listed = [{"event": name, "onset": start, "duration": end - start} for name, start, end in events]
    metadata = {"captions": ["a sound"], "metadata": {"events": listed}}
    return StoredClip(encode(pcm), len(pcm), 1, json.dumps(metadata).encode())


@pytest.fixture
def model() -> SLAP:
    return LoudnessColumns(TINY).eval()


@pytest.fixture
def train(tmp_path: Path) -> ClipIndex:
    clips = [clip(4.8, ("tone", 0.16 * at, 1.6), ("dog_bark", 3.2, 4.0)) for at in range(9)]
    return write_dataset(tmp_path / "train", clips)


def test_segment_f1_counts_segments_of_one_second_as_sed_eval_does(
    model: SLAP, train: ClipIndex, tmp_path: Path
) -> None:
    test = write_dataset(
        tmp_path / "test",
        [
            clip(4.8, ("tone", 0.8, 1.6), ("dog_bark", 3.2, 4.0)),  # tone in segments 0 and 1, bark in 3 alone
            clip(3.2, ("tone", 0.0, 2.08), sounding=(("tone", 0.0, 0.96), ("dog_bark", 2.4, 3.2))),  # 2 missed, 2 wrong
            clip(1.6, ("creak", 0.0, 1.6)),
        ],
    )
    scores = frame_probe(model, train, test, resamples=50)
    # Tone: 2 + 1 right, segments 1 and 2 missed. Bark: 1 right, segments 2 and 3 wrong.
    assert scores.per_class_f1 == pytest.approx({"tone": 2 * 3 / (2 * 3 + 2), "dog bark": 2 / (2 + 2)})
    assert scores.segment_f1 == pytest.approx(2 * 4 / (2 * 4 + 2 + 2))
    assert scores.segment_f1_macro == pytest.approx((0.75 + 0.5) / 2)
    assert scores.always_f1 == pytest.approx(
        2 * 6 / (2 * 6 + 16)
    )  # 5 + 4 + 2 segments of two classes, 6 of them active
    assert scores.interval[0] <= scores.segment_f1 <= scores.interval[1]
    # 5 frames of barks that are heard, and 55 others, 5 of which sound the same.
    assert scores.per_class_auroc["dog bark"] == pytest.approx((50 + 5 / 2) / 55)
    assert (scores.training_clips, scores.training_frames, scores.test_clips) == (9, 9 * 30, 3)
    assert scores.warnings == ["events of classes without any training clip are not scored: creak (1)"]


def test_training_frames_are_limited_evenly_and_unreadable_clips_are_listed(
    model: SLAP, train: ClipIndex, tmp_path: Path
) -> None:
    damaged = replace(clip(4.8, ("tone", 0.0, 1.6)), audio=b"no FLAC")
    test = write_dataset(tmp_path / "test", [clip(4.8, ("tone", 0.0, 1.6), ("dog_bark", 3.2, 4.0)), damaged])
    scores = frame_probe(model, train, test, max_frames=90, resamples=10)
    assert scores.training_frames == 90
    assert "fitted to 90 frames, 33.3 % of the training clips (--max-frames)" in scores.warnings
    assert [skip.name for skip in scores.skipped] == ["clip-1"]
    assert scores.segment_f1 == 1


def test_datasets_without_events_are_errors(model: SLAP, train: ClipIndex, tmp_path: Path) -> None:
    silent = write_dataset(tmp_path / "silent", [clip(1.6), clip(1.6)])
    with pytest.raises(LabelError, match="silent: its clips have no class of events"):
        frame_probe(model, silent, train)
    with pytest.raises(LabelError, match=r"silent: its clips have no event of a class that .*train has"):
        frame_probe(model, train, silent)
