"""Moments of recordings are those of the decoded whole, also where the file is entered in the middle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from slap_fast.audio.errors import AudioError
from slap_fast.audio.reader import AudioFile
from slap_fast.audio.waveform import load_audio
from slap_fast.library.recording_audio import read_moment


def _write(path: Path, rate: int, channels: int, subtype: str | None = None) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (21 * rate, channels))
    soundfile.write(path, samples, rate, subtype)


def _skipped(path: Path) -> int:
    with open(path, "rb") as file, AudioFile(file) as sound:
        return sound.skip(11)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "is_entered"),
    [
        ("a.wav", 44_100, 2, "PCM_24", True),
        ("a.wav", 16_000, 1, "FLOAT", True),
        ("a.flac", 48_000, 2, None, True),
        ("a.aiff", 22_050, 1, None, True),
        ("a.ogg", 44_100, 1, None, False),
        ("a.mp3", 44_100, 2, None, False),
    ],
)
def test_a_moment_is_cut_out_of_the_whole(
    tmp_path: Path, name: str, rate: int, channels: int, subtype: str | None, is_entered: bool
) -> None:
    path = tmp_path / name
    _write(path, rate, channels, subtype)
    assert _skipped(path) == (11 if is_entered else 0)
    whole = load_audio(path, 16_000)
    for start, end in ((0.0, 0.5), (1.3, 2.0), (12.34, 15.6), (20.5, 30.0)):
        found = read_moment(str(path), "", start, end, 16_000)
        np.testing.assert_allclose(found, whole[round(start * 16_000) : round(end * 16_000)], rtol=0, atol=1e-6)


def test_a_flac_file_with_a_damaged_frame_fails_only_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    _write(path, 16_000, 1)
    whole = load_audio(path, 16_000)
    content = bytearray(path.read_bytes())
    late = int(0.93 * len(content))
    content[late : late + 2000] = bytes(2000)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_moment(str(path), "", 2.0, 3.0, 16_000), whole[32_000:48_000])
    with pytest.raises(AudioError, match="unreadable"):
        read_moment(str(path), "", 19.0, 20.0, 16_000)


def test_joined_files_are_decoded_from_their_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    _write(path, 16_000, 1)
    path.write_bytes(2 * path.read_bytes())
    whole = load_audio(path, 16_000)
    assert len(whole) == 42 * 16_000
    assert _skipped(path) == 0
    np.testing.assert_array_equal(read_moment(str(path), "", 25.0, 26.0, 16_000), whole[25 * 16_000 : 26 * 16_000])
