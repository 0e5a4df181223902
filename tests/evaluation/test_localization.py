from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slap_fast.evaluation.localization import EventSpan, events_of, localize, mel_frames
from slap_fast.ops.log_mel.config import MelConfig
from tests.evaluation.fakes import LoudnessModel


def test_similarity_peaks_where_the_clip_matches_the_query() -> None:
    waveform = np.concatenate([np.full(8000, 0.1, np.float32), np.full(8000, 0.6, np.float32)])
    quiet, loud = localize(LoudnessModel(), waveform, ["0.1", "0.6"])
    assert quiet.query == "0.1"
    assert quiet.times.shape == quiet.similarity.shape == (10,)
    assert 0.0 < quiet.peak < 0.5 < loud.peak < 1.0
    (alone,) = localize(LoudnessModel(), waveform, "0.1")
    assert np.array_equal(alone.similarity, quiet.similarity)


def test_events_are_spans_in_seconds_with_the_words_of_captions() -> None:
    metadata = {"events": [{"event": "dog_bark", "onset": 1.5, "duration": 2.0}]}
    (known,) = events_of(metadata)
    assert events_of({"captions": [], "metadata": metadata}) == [known]
    assert (known.start, known.end) == (1.5, 3.5)
    assert "_" not in known.text
    unknown = {"events": [{"event": "door_slam", "onset": 0, "duration": 1}]}
    assert events_of(unknown) == [EventSpan("door slam", 0.0, 1.0)]


@pytest.mark.parametrize("events", [None, "dog", ["dog"], [{"event": "dog"}], {"event": "dog"}])
def test_events_of_another_form_are_ignored(events: Any) -> None:
    assert events_of({"events": events}) == events_of({"metadata": events}) == []


def test_mel_frames_are_those_of_the_model() -> None:
    config = MelConfig(mean=-5.0, std=3.0)
    frames = mel_frames(np.zeros(16_000, np.float32), config)
    assert frames.shape == (config.num_frames(16_000), 64)
    np.testing.assert_allclose(frames, config.normalized_floor, rtol=1e-6)
