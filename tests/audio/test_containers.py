"""Container parsers: concatenated files, files without a length, truncated files."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from slap_fast.audio.containers import ByteView, StreamPart
from slap_fast.audio.errors import AudioError
from slap_fast.audio.reader import open_audio
from slap_fast.audio.waveform import load_audio, mono_blocks

_RATE = 44_100


def _noise(seconds: float, level: float = 0.4, rate: int = _RATE) -> np.ndarray:
    return np.random.default_rng(round(seconds * 10)).uniform(-level, level, round(seconds * rate)).astype(np.float32)


def _file(waveform: np.ndarray, format: str, subtype: str, rate: int = _RATE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=format, subtype=subtype, **options)
    return buffer.getvalue()


def _mp3(waveform: np.ndarray, rate: int = _RATE, xing: bool = True) -> bytes:
    data = _file(waveform, "MP3", "MPEG_LAYER_III", rate, bitrate_mode="VARIABLE", compression_level=0.2)
    if xing:
        return data
    # The first frame holds the header alone; the next begins with the same two bytes.
    return data[data.index(data[:2], 4) :]


def _load(data: bytes) -> tuple[np.ndarray, list[str]]:
    """The audio at 16 kHz, and the reasons of its notes."""
    with open_audio(data) as sound:
        return np.concatenate(list(mono_blocks(sound, 16_000))), [reason for reason, _ in sound.notes]


def _reason(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(data)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("quiet_first", [False, True])
def test_mp3_without_a_xing_header_is_read_to_its_end(quiet_first: bool) -> None:
    # From the bitrate of the first frame, libsndfile estimates 1 s or 8 s here.
    halves = [_noise(2.0, 0.8), np.zeros(2 * _RATE, np.float32)]
    data = _mp3(np.concatenate(halves[::-1] if quiet_first else halves), xing=False)
    estimated = soundfile.info(io.BytesIO(data)).duration
    assert abs(estimated - 4.0) > 0.5
    waveform, notes = _load(data)
    assert len(waveform) == pytest.approx(4.03 * 16_000, abs=480)
    assert notes == []
    # Whole frames, as ffmpeg decodes them.
    assert len(load_audio(data, _RATE)) % 1152 == 0
    levels = [np.abs(half).mean() for half in np.split(waveform[: 4 * 16_000], 2)]
    assert (levels[0] < 0.1 * levels[1]) if quiet_first else (levels[1] < 0.1 * levels[0])


def test_mp3_with_tags_and_stray_bytes() -> None:
    frames = _mp3(_noise(2.0), xing=False)
    within, _ = _load(frames[100:])
    id3 = b"ID3\x04\0\0" + bytes([0, 0, 0x40, 0]) + b"\xff\xfb\x90\xc0" * 2048
    tail = b"APETAGEX" + struct.pack("<4I", 2000, 32, 0, 0) + bytes(8) + b"TAG" + b"\xff" * 125
    plain, _ = _load(frames)
    # A recording may begin anywhere within a frame.
    assert 0 < len(plain) - len(within) < 1000
    for data, seconds, noted in [
        (id3 + frames + tail, 2.0, []),
        (frames + id3 + frames, 4.0, ["joined"]),
        (frames + b"\0" * 9000, 2.0, ["trailing_bytes"]),
    ]:
        waveform, notes = _load(data)
        assert len(waveform) == pytest.approx(len(plain) * seconds / 2, abs=400), seconds
        assert notes == noted


_JOINABLE: dict[str, Any] = {
    "MP3": _mp3,
    "MP3 without Xing": lambda waveform, rate: _mp3(waveform, rate, False),
    "Ogg Vorbis": lambda waveform, rate: _file(waveform, "OGG", "VORBIS", rate),
    "Ogg Opus": lambda waveform, rate: _file(waveform, "OGG", "OPUS", 48_000),
    "FLAC": lambda waveform, rate: _file(waveform, "FLAC", "PCM_16", rate),
}


@pytest.mark.parametrize("format", _JOINABLE)
@pytest.mark.parametrize("rate", [_RATE, 22_050])
def test_concatenated_files_are_read_to_the_end_of_the_last(format: str, rate: int) -> None:
    encode = _JOINABLE[format]
    seconds = [1.0, 1.5]
    rates = [48_000, 48_000] if "Opus" in format else [_RATE, rate]
    parts = [encode(_noise(length, rate=hertz), hertz) for length, hertz in zip(seconds, rates, strict=True)]
    alone = [_load(part)[0] for part in parts]
    joined, notes = _load(b"".join(parts))
    # MP3 without a header includes the padding of the codec at both ends.
    assert sum(map(len, alone)) == pytest.approx(2.5 * 16_000, abs=2000 if "without" in format else 2)
    assert len(joined) == pytest.approx(sum(map(len, alone)), abs=2)
    assert notes == (["joined"] if len(set(rates)) > 1 or "without" not in format else [])
    assert np.corrcoef(joined[4000:12_000], alone[0][4000:12_000])[0, 1] > 0.99
    end = joined[-20_000:-4000]
    # MP3 without a header does not define where within a frame it begins.
    best = max(np.corrcoef(end, alone[1][-20_000 - lag : -4000 - lag])[0, 1] for lag in range(-300, 301))
    assert best > 0.7


@pytest.mark.parametrize(
    ("format", "subtype", "reason"),
    [
        ("WAV", "PCM_16", "truncated"),
        ("WAVEX", "PCM_24", "truncated"),
        ("WAV", "IMA_ADPCM", "truncated"),
        ("RF64", "PCM_16", "truncated"),
        ("AIFF", "PCM_16", "truncated"),
        ("AU", "PCM_16", "truncated"),
        ("W64", "PCM_16", "truncated"),
        ("CAF", "PCM_16", "truncated"),
        ("SVX", "PCM_16", "truncated"),
        ("VOC", "PCM_16", "truncated"),
        ("OGG", "VORBIS", "truncated"),
        ("OGG", "OPUS", "truncated"),
        ("MP3", "MPEG_LAYER_III", "truncated"),
        ("FLAC", "PCM_16", "unreadable"),
    ],
)
def test_half_a_file_is_rejected_with_its_reason(format: str, subtype: str, reason: str) -> None:
    data = _file(_noise(2.0, rate=16_000), format, subtype, 16_000)
    assert (len(load_audio(data)), _load(data)[1]) == (pytest.approx(32_000, abs=1100), [])
    assert _reason(data[: len(data) // 2]) == reason
    assert len(load_audio(data + b"TAG" + b"x" * 125)) == pytest.approx(32_000, abs=1100)


def test_a_few_missing_bytes_are_noted() -> None:
    wav = _file(_noise(2.0), "WAV", "PCM_16")
    assert _load(wav[:-4000])[1] == ["cut_short"]
    assert _load(wav + b"\xff" * 10)[1] == ["trailing_bytes"]
    assert _load(_mp3(_noise(4.0))[:-2000])[1] == ["cut_short"]
    opus = _file(_noise(4.0, rate=48_000), "OGG", "OPUS", 48_000)
    last = opus.rindex(b"OggS")
    assert _load(opus[:last])[1] == ["cut_short"]
    middle = opus.rindex(b"OggS", 0, last)
    assert "lost_pages" in _load(opus[:middle] + opus[last:])[1]


@pytest.mark.parametrize("format", ["WAV", "RIFX", "RF64", "CAF", "W64", "AIFF", "AU"])
def test_files_whose_writer_did_not_fill_in_sizes(format: str) -> None:
    endian = {"endian": "BIG"} if format == "RIFX" else {}
    pcm = np.random.default_rng(0).integers(-32768, 32768, 48_000).astype(np.int16)
    data = bytearray(_file(pcm, "WAV" if format == "RIFX" else format, "PCM_16", 16_000, **endian))
    order = "<" if format in ("WAV", "RF64", "W64") else ">"
    place, values = {
        "WAV": (data.find(b"data") + 4, ("I", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])),
        "RIFX": (data.find(b"data") + 4, ("I", [0, 0xFFFFFFFF])),
        "RF64": (data.find(b"ds64") + 16, ("Q", [0])),
        "CAF": (data.find(b"data") + 4, ("Q", [2**64 - 1])),
        "W64": (data.find(b"data") + 16, ("Q", [2**63 - 1, 0])),
        "AIFF": (data.find(b"SSND") + 4, ("I", [0])),
        "AU": (8, ("I", [0xFFFFFFFF])),
    }[format]
    for value in values[1]:
        struct.pack_into(order + values[0], data, place, value)
        if format in ("WAV", "RIFX"):
            # 36 is the size of a file without audio: the writer was killed before it updated the header.
            for whole in (0, 36, 0xFFFFFFFF):
                struct.pack_into(order + "I", data, 4, whole)
                np.testing.assert_array_equal(load_audio(bytes(data)), pcm / np.float32(32768))
        np.testing.assert_array_equal(load_audio(bytes(data)), pcm / np.float32(32768))


def test_an_empty_wav_is_empty_despite_later_chunks() -> None:
    data = _file(np.zeros(0), "WAV", "PCM_16") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    assert _reason(data[:4] + struct.pack("<I", len(data) - 8) + data[8:]) == "no_samples"


def test_chunks_after_the_audio_are_not_decoded() -> None:
    for format in ("W64", "SVX", "WAV", "AIFF"):
        data = _file(_noise(1.0), format, "PCM_16")
        assert len(load_audio(data + b"junk" + b"\x55" * 4000)) == 16_000


def test_floats_at_the_scale_of_integers_are_rejected() -> None:
    waveform = _noise(1.0, 20_000.0)
    assert _reason(_file(waveform, "WAV", "FLOAT")) == "out_of_range"
    assert _reason(_file(waveform, "CAF", "DOUBLE")) == "out_of_range"
    loud = _noise(1.0, 1.2)
    np.testing.assert_array_equal(load_audio(_file(loud, "WAV", "FLOAT"), _RATE), loud)


def test_irregular_files_that_can_be_used_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    load_audio(_file(_noise(2.0), "WAV", "PCM_16")[:-4000])
    assert "cut_short: the header declares 176400 bytes of audio, the file holds 172400" in caplog.text


@given(
    size=st.integers(0, 200_000),
    bounds=st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)),
    head=st.binary(max_size=40),
    patches=st.lists(st.tuples(st.integers(0, 200_000), st.binary(min_size=1, max_size=9)), max_size=3),
    reads=st.lists(st.tuples(st.integers(-10, 210_000), st.integers(0, 70_000)), max_size=4),
)
def test_a_view_reads_as_a_separate_file(
    size: int,
    bounds: tuple[int, int],
    head: bytes,
    patches: list[tuple[int, bytes]],
    reads: list[tuple[int, int]],
) -> None:
    data = np.arange(size, dtype=np.uint32).astype(np.uint8).tobytes()
    start, end = sorted(min(bound, size) for bound in bounds)
    changed = bytearray(data)
    for place, patch in patches:
        changed[place : place + len(patch)] = patch[: max(0, size - place)]
    expected = head + bytes(changed[start:end])
    view = ByteView(io.BytesIO(data), StreamPart(start, end, head, tuple(patches)))
    assert view.read() == expected
    for place, count in reads:
        view.seek(place)
        assert view.read(count) == expected[max(0, place) :][:count]
    assert view.seek(2**70) <= 2**62


def test_a_read_error_within_the_file_is_reported() -> None:
    data = _file(_noise(20.0, rate=48_000), "OGG", "OPUS", 48_000)

    class Failing(io.BytesIO):
        whole = True

        def read(self, size: int | None = -1) -> bytes:
            if not self.whole and self.tell() > len(data) // 2:
                raise OSError(5, "Input/output error")
            return super().read(size)

    file = Failing(data)
    with open_audio(file) as sound:
        file.whole = False
        with pytest.raises(AudioError, match=r"unreadable: the file cannot be read to its end \(Input/output error\)"):
            list(mono_blocks(sound, 16_000))
    file = Failing(data)
    with open_audio(file) as sound:
        file.truncate(len(data) // 2)
        with pytest.raises(AudioError, match="it has become shorter"):
            list(mono_blocks(sound, 16_000))


@pytest.mark.parametrize("promised", [0, 1, 4096, 20_000, 32_000])
def test_flac_is_read_to_its_end_whatever_length_its_header_has(promised: int) -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32768, 32_000).astype(np.int16)
    data = bytearray(_file(pcm, "FLAC", "PCM_16", 16_000))
    data[21:26] = ((data[21] >> 4 << 36) | promised).to_bytes(5, "big")
    np.testing.assert_array_equal(load_audio(bytes(data)), pcm / np.float32(32768))
    data[21:26] = ((data[21] >> 4 << 36) | 32_000).to_bytes(5, "big")
    for before in (b"", b"ID3\4\0\0" + bytes([0, 0, 1, 0]) + bytes(128)):
        waveform, notes = _load(before + bytes(data) + b"TAG" + b"\1" * 125)
        np.testing.assert_array_equal(waveform, pcm / np.float32(32768))
        assert notes == ([] if before else ["trailing_bytes"])
