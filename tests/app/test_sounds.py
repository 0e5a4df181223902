"""Sounds that the page cuts out of recordings."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slap_fast.app.pictures import NARROW, WIDE, Curve, Shape, draw_sound
from slap_fast.app.sounds import Sounds
from slap_fast.library.database import Database
from slap_fast.ops.log_mel.config import MelConfig
from tests.app.served import RATE, make_library


@pytest.mark.parametrize("ending", ["wav", "mp3"])
def test_a_stretch_near_the_end_does_not_take_the_memory_of_what_is_before_it(
    tmp_path: Path, empty_library: Path, ending: str
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    minute = np.random.default_rng(0).normal(0, 0.1, 60 * RATE).astype(np.float32)
    with soundfile.SoundFile(uploads / f"long.{ending}", "w", RATE, 1) as file:
        for _ in range(3):
            file.write(minute)
    with Database(make_library(tmp_path, empty_library)) as database:
        sounds = Sounds(database, uploads)
        key = sounds.admit(str(uploads / f"long.{ending}")).key
        tracemalloc.start()
        try:
            cut = sounds.stretch(key, 2 * 60, 2 * 60 + 10, RATE)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(cut.samples) == 10 * RATE
    assert peak < 4e6  # all 3 minutes: 11.5e6


@pytest.mark.parametrize("shape", [WIDE, NARROW])
@pytest.mark.parametrize("has_curve", [True, False])
def test_a_picture_has_the_size_that_the_page_keeps_free_for_it(shape: Shape, has_curve: bool) -> None:
    image = pytest.importorskip("PIL.Image")
    curve = Curve(np.array([0.5, 1.5]), np.array([0.2, 1.2])) if has_curve else None
    drawn = draw_sound(np.ones(2 * RATE, np.float32), MelConfig(), curve=curve, shape=shape)
    assert image.open(io.BytesIO(drawn)).size == shape.pixels(curve=has_curve)
