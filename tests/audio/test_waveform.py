"""Waveform loading and FLAC encoding: formats, resampling, rejected clips."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from slap_fast.audio.errors import AudioError
from slap_fast.audio.flac_encoder import encode_flac
from slap_fast.audio.waveform import load_audio


def _tone(frequency: float, rate: int, seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def _file(waveform: np.ndarray, rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def _reason(file: object) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(file)  # type: ignore[arg-type]
    assert caught.value.detail
    return caught.value.reason


def _level(waveform: np.ndarray, frequency: float, rate: int = 16_000) -> float:
    """Amplitude of the sine of `frequency` in `waveform`, away from the edges."""
    middle = waveform[len(waveform) // 4 : -len(waveform) // 4].astype(np.float64)
    window = np.hanning(len(middle))
    return (
        2 * abs(np.sum(middle * window * np.exp(-2j * np.pi * frequency * np.arange(len(middle)) / rate))) / sum(window)
    )


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 1e-6),
        ("WAV", "DOUBLE", 1e-6),
        ("FLAC", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_formats(tmp_path: Path, format: str, subtype: str, tolerance: float, as_bytes: bool) -> None:
    data = _file(_tone(440, 16_000, 1.0), 16_000, format, subtype)
    (tmp_path / "clip").write_bytes(data)
    waveform = load_audio(data if as_bytes else tmp_path / "clip")
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    assert _level(waveform, 440) == pytest.approx(0.5, abs=tolerance)


def test_channels_are_mixed_by_their_mean() -> None:
    rng = np.random.default_rng(0)
    channels = rng.uniform(-1, 1, (5000, 3)).astype(np.float32)
    np.testing.assert_allclose(load_audio(_file(channels, 16_000, subtype="FLOAT")), channels.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_001, 22_050, 44_100, 48_000])
def test_streamed_resampling_equals_resampling_at_once(rate: int) -> None:
    # Longer than several decoding blocks, to include their boundaries.
    waveform = np.random.default_rng(rate).uniform(-0.5, 0.5, 700_001).astype(np.float32)
    np.testing.assert_array_equal(
        load_audio(_file(waveform, rate, subtype="FLOAT")), soxr.resample(waveform, rate, 16_000, "HQ")
    )


def test_a_tone_above_the_new_nyquist_frequency_is_removed() -> None:
    tones = _tone(12_000, 44_100, 2.0) + _tone(1_000, 44_100, 2.0, 0.25)
    waveform = load_audio(_file(tones, 44_100, subtype="FLOAT"))
    assert _level(waveform, 4_000) < 0.5 * 10 ** (-100 / 20)
    assert _level(waveform, 1_000) == pytest.approx(0.25, rel=1e-3)


def test_192_khz_with_8_channels() -> None:
    tone = _tone(440, 192_000, 1.0)
    waveform = load_audio(_file(np.stack([tone] * 8, axis=1), 192_000, subtype="PCM_24"))
    assert len(waveform) == 16_000
    assert _level(waveform, 440) == pytest.approx(0.5, rel=1e-3)


def test_missing_file(tmp_path: Path) -> None:
    assert _reason(tmp_path / "no.wav") == "missing_file"
    (tmp_path / "file").write_bytes(b"x")
    assert _reason(tmp_path / "file" / "no.wav") == "missing_file"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    assert _reason(tmp_path / "empty.wav") == "empty_file"
    assert _reason(b"") == "empty_file"


@pytest.mark.parametrize("name", ["text.wav", "text.raw", "text.mp3", "text"])
def test_text_with_the_name_of_audio(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is not audio\n" * 100)
    assert _reason(tmp_path / name) == "unreadable"


def test_a_path_that_is_not_a_regular_file(tmp_path: Path) -> None:
    assert _reason(tmp_path) == "unreadable"
    os.mkfifo(tmp_path / "pipe.wav")
    assert _reason(tmp_path / "pipe.wav") == "unreadable"


def test_flac_of_unknown_length() -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32768, 600_000).astype(np.int16)
    data = bytearray(_file(pcm, 16_000, "FLAC"))
    # The sample count in STREAMINFO, as written to a pipe.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(load_audio(bytes(data)), pcm / np.float32(32768))


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_truncated_flac(kept: float) -> None:
    data = _file(np.random.default_rng(0).uniform(-1, 1, 160_000), 16_000, "FLAC")
    assert _reason(data[: int(len(data) * kept)]) == "unreadable"


def test_damaged_flac() -> None:
    data = bytearray(_file(np.random.default_rng(0).uniform(-1, 1, 160_000), 16_000, "FLAC"))
    data[len(data) // 2] ^= 0xFF
    assert _reason(bytes(data)) == "unreadable"


def test_truncated_mp3() -> None:
    data = _file(_tone(440, 16_000, 20.0), 16_000, "MP3")
    assert _reason(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize("rate", [1, 499])
def test_a_rate_that_would_turn_a_small_file_into_gigabytes(rate: int) -> None:
    assert _reason(_file(np.zeros(100), rate)) == "unreadable"
    assert len(load_audio(_file(np.zeros(500), 500))) == 16_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_nan_and_infinity(value: float, rate: int) -> None:
    waveform = np.zeros((rate, 2), np.float32)
    waveform[rate - 7, 1] = value
    assert _reason(_file(waveform, rate, subtype="FLOAT")) == "not_finite"


def test_zero_samples() -> None:
    assert _reason(_file(np.zeros(0), 16_000)) == "no_samples"
    assert _reason(_file(np.zeros((0, 2)), 44_100)) == "no_samples"


def _decode(flac: bytes | Path) -> np.ndarray:
    file = io.BytesIO(flac) if isinstance(flac, bytes) else flac
    pcm, rate = soundfile.read(file, dtype="int16")
    assert rate == 16_000
    return pcm


def test_16_bit_audio_at_the_target_rate_is_kept_bit_for_bit(tmp_path: Path) -> None:
    pcm = np.random.default_rng(1).integers(-32768, 32768, 50_000).astype(np.int16)
    waveform = load_audio(_file(pcm, 16_000))
    flac = encode_flac([waveform[:777], waveform[777:]], tmp_path / "spill")
    assert (flac.samples, flac.silent) == (50_000, False)
    assert isinstance(flac.audio, bytes)
    assert flac.size == len(flac.audio)
    np.testing.assert_array_equal(_decode(flac.audio), pcm)


def test_loud_samples_are_clipped_not_wrapped(tmp_path: Path) -> None:
    flac = encode_flac([np.array([1.5, -1.5, 1.0, -1.0, 1e30, 0.25], np.float32)], tmp_path / "spill")
    np.testing.assert_array_equal(_decode(flac.audio), [32767, -32768, 32767, -32768, 32767, 8192])


def test_silence_is_detected(tmp_path: Path) -> None:
    assert encode_flac([np.zeros(100, np.float32), np.full(100, 1e-6, np.float32)], tmp_path / "spill").silent


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([], "no_samples"),
        ([np.zeros(0, np.float32)], "no_samples"),
        ([np.zeros(100, np.float32), np.array([np.nan], np.float32)], "not_finite"),
        ([np.zeros(7_999, np.float32)], "too_short"),
        ([np.zeros(10_000, np.float32), np.zeros(6_001, np.float32)], "too_long"),
    ],
)
def test_rejected_clips(tmp_path: Path, blocks: list[np.ndarray], reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        encode_flac(blocks, tmp_path / "spill", min_seconds=0.5, max_seconds=1.0)
    assert caught.value.reason == reason


def test_a_large_stream_is_encoded_to_a_temporary_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(2).integers(-32768, 32768, 10_000_000).astype(np.int16)
    blocks = (part / np.float32(32768) for part in np.array_split(noise, 7))
    flac = encode_flac(blocks, tmp_path / "spill")
    assert flac.audio == tmp_path / "spill"
    assert flac.size == flac.audio.stat().st_size
    np.testing.assert_array_equal(_decode(flac.audio), noise)


def test_a_rejected_stream_leaves_no_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(2).uniform(-1, 1, 10_000_000).astype(np.float32)
    with pytest.raises(AudioError):
        encode_flac([noise, noise], tmp_path / "spill", max_seconds=1000.0)
    assert not (tmp_path / "spill").exists()


def test_a_full_disk_is_an_os_error_not_an_audio_error(tmp_path: Path) -> None:
    (tmp_path / "spill").symlink_to("/dev/full")
    noise = np.random.default_rng(2).uniform(-1, 1, 10_000_000).astype(np.float32)
    with pytest.raises(OSError, match="No space left"):
        encode_flac([noise], tmp_path / "spill")


def test_three_hours_need_no_more_memory_than_a_minute(tmp_path: Path) -> None:
    header = _file(np.zeros(1), 8_000, subtype="PCM_U8")[:44]
    samples = 3 * 3600 * 8_000
    with open(tmp_path / "long.wav", "wb") as file:
        file.write(header[:4] + (36 + samples).to_bytes(4, "little") + header[8:40] + samples.to_bytes(4, "little"))
        file.truncate(44 + samples)
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from slap_fast.data.prepare.clip_encoder import ClipEncoder\n"
        "from slap_fast.data.prepare.source import ClipItem, FileAudio\n"
        "encode = ClipEncoder(Path(sys.argv[1]).parent, 0.0, None)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "clip = encode(ClipItem('long', ['a'], FileAudio(Path(sys.argv[1])), 'long'))\n"
        "print(clip.flac.samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "long.wav")], capture_output=True, text=True, check=True
    ).stdout
    encoded, growth_kib = map(int, output.split())
    assert encoded == 2 * samples
    assert growth_kib < 64 * 1024
