"""Recordings of any length: embedded as a stream, by the commands as by `SLAP.encode_audio`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from slap_fast.audio.errors import AudioError
from slap_fast.audio.waveform import load_audio
from slap_fast.inference.audio_inputs import AudioInput, NoReadableClipError, Skipped, file_input, recording_input
from slap_fast.inference.embed import embed_audio
from slap_fast.models.slap import SLAP
from tests.data.builders import make_clip, write_dataset
from tests.models.saved import tiny_slap

RATE = 16_000


@pytest.fixture(scope="module")
def model() -> SLAP:
    model = tiny_slap()
    model.config = replace(model.config, max_duration=1.0)
    return model


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)


def test_files_of_all_lengths_have_the_embeddings_of_encode_audio(model: SLAP, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.wav" for number in range(5)]
    for number, (path, seconds) in enumerate(zip(paths, (0.5, 20.3, 1.0, 3.3, 0.7), strict=True)):
        soundfile.write(path, noise(seconds, number), RATE, subtype="FLOAT")
    found = embed_audio(model, [file_input(path) for path in paths])
    assert [clip.name for clip in found.inputs] == [str(path) for path in paths]
    assert torch.equal(found.embeddings, model.encode_audio(paths))
    limited = embed_audio(model, [file_input(path, max_seconds=2.0) for path in paths])
    assert len(limited.inputs) == 3
    assert [skipped.reason.split(":")[0] for skipped in limited.skipped] == ["too_long", "too_long"]


def test_a_long_recording_is_never_in_memory_and_one_that_breaks_off_is_skipped(model: SLAP) -> None:
    given = 0

    def blocks(sample_rate: int) -> Iterator[np.ndarray]:
        nonlocal given
        for number in range(40):
            given += 1
            yield noise(1.0, number)
        raise AudioError("unreadable", "damaged or cut off after 40.0 s")

    clip = AudioInput("long", lambda sample_rate: pytest.fail("read as a whole"), stream=blocks)
    short = AudioInput("short", lambda sample_rate: noise(0.5))
    found = embed_audio(model, [clip, short])
    assert given == 40
    assert [clip.name for clip in found.inputs] == ["short"]
    assert found.skipped == [Skipped("long", "unreadable: damaged or cut off after 40.0 s")]


def test_a_recording_is_a_file_or_a_clip_of_a_dataset(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", [make_clip(0), make_clip(1)])
    odd = tmp_path / "a#b.wav"
    soundfile.write(odd, noise(0.1), RATE)
    assert len(recording_input(str(odd)).read(RATE)) == RATE // 10
    key = dataset.key(1)
    expected = load_audio(dataset.read_audio(1), RATE)
    assert np.array_equal(recording_input(f"{tmp_path / 'data'}#{key}").read(RATE), expected)
    for name, message in (
        (
            f"{tmp_path / 'data'}#other",
            f"no clip has the key 'other'; its 2 clips have others, such as '{dataset.key(0)}'",
        ),
        (str(tmp_path), "a folder is no recording"),
        (str(tmp_path / "none.wav"), "none.wav: no such file"),
        (f"{tmp_path}#x", "#x: no such file"),
    ):
        with pytest.raises(NoReadableClipError, match=message.replace("(", r"\(")):
            recording_input(name)


def test_a_caption_of_a_long_clip_is_one_of_the_whole_with_a_warning(
    model: SLAP, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(model.caption([noise(0.5), noise(2.5)], sampling_rate=RATE, max_length=2)) == 2
    assert "1 of 2 clips are longer than the 1 s of training, up to 2 s" in caplog.text
