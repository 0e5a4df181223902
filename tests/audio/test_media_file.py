"""Audio that libsndfile does not read: FFmpeg, through PyAV, with the media files of `media_files`."""

from __future__ import annotations

import contextlib
import io
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from slap_fast.audio.errors import AudioError
from slap_fast.audio.media_file import MediaFile
from slap_fast.audio.reader import open_audio
from slap_fast.audio.waveform import load_audio
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare import prepare
from slap_fast.inference.audio_inputs import file_input
from tests.audio.media_files import sine, write_media
from tests.data.fuzzing import corruptions, extremes

Notes = list[tuple[str, str]]


def _decoded(data: bytes) -> tuple[np.ndarray, int, Notes]:
    with open_audio(data) as sound:
        blocks = list(sound.blocks())
        return np.concatenate([block for _, block in blocks]), blocks[0][0], sound.notes


def _failure(data: bytes, name: str = "") -> tuple[str, str]:
    with pytest.raises(AudioError) as caught, open_audio(data, name=name) as sound:
        list(sound.blocks())
    return caught.value.reason, caught.value.detail


def _lead(decoded: np.ndarray, waveform: np.ndarray, rate: int, hz: float) -> float:
    """Seconds by which a sine is early, and 0 if it is in phase. Within half a period."""
    shared = slice(rate // 8, rate * 3 // 8)
    turn = np.exp(-2j * np.pi * hz * np.arange(rate)[shared] / rate)
    return float(np.angle((decoded[shared] * turn).sum() / (waveform[shared] * turn).sum()) / (2 * np.pi * hz))


@pytest.mark.parametrize(
    ("container", "codec", "rate", "sample_format", "error"),
    [
        ("ipod", "aac", 48_000, None, None),
        ("mp4", "aac", 44_100, None, None),
        ("3gp", "aac", 16_000, None, None),
        ("webm", "libopus", 48_000, None, None),
        ("mp4", "libopus", 48_000, None, None),
        ("matroska", "libopus", 48_000, None, None),
        ("matroska", "flac", 44_100, "s16", 2**-15),
        ("ipod", "alac", 44_100, "s16p", 2**-15),
        ("mov", "pcm_s24le", 44_100, None, 2**-23),
        ("mov", "pcm_u8", 44_100, None, 2**-7),
        ("wv", "wavpack", 44_100, "s32p", 2**-30),
        ("wv", "wavpack", 44_100, "u8p", 2**-7),
        ("tta", "tta", 44_100, "s16", 2**-15),
        ("matroska", "pcm_f32le", 48_000, None, 0),
        ("nut", "pcm_f64le", 48_000, None, 1e-7),
        ("matroska", "libmp3lame", 8000, None, None),  # its length has the delay of the encoder, a fifth of the audio
    ],
)
def test_a_file_reads_back_with_its_length_start_and_scale(
    container: str, codec: str, rate: int, sample_format: str | None, error: float | None
) -> None:
    waveform = sine(0.7, rate)
    data = write_media(container, codec, waveform, rate, sample_format=sample_format)
    decoded, decoded_rate, notes = _decoded(data)
    assert (decoded_rate, len(decoded), notes) == (rate, len(waveform), [])
    assert abs(_lead(decoded, waveform, rate, 440.0)) < 1e-4
    if error is None:
        assert np.abs(decoded).max() == pytest.approx(0.5, rel=0.2)
    else:
        assert np.abs(decoded - waveform).max() <= 1.001 * error


def test_channels_are_mixed_by_their_mean_in_every_order_of_samples() -> None:
    channels = np.stack([sine(0.5, 48_000), np.zeros(24_000, np.float32)])
    for container, codec, sample_format in (("matroska", "pcm_f32le", "flt"), ("wv", "wavpack", "fltp")):
        decoded, _, _ = _decoded(write_media(container, codec, channels, sample_format=sample_format))
        np.testing.assert_allclose(decoded, channels.mean(axis=0), atol=1e-6)


def test_eight_channels_in_planes_are_all_read() -> None:
    channels = np.stack([0.1 * number * sine(0.5, 48_000) for number in range(8)])
    decoded, _, _ = _decoded(write_media("matroska", "wavpack", channels, sample_format="s16p"))
    np.testing.assert_allclose(decoded, channels.mean(axis=0), atol=2**-14)


def test_a_stream_whose_rate_and_channels_change_keeps_its_duration() -> None:
    stereo = np.stack([sine(0.5, 24_000)] * 2)
    data = write_media("adts", "aac", sine(0.5, 48_000)) + write_media("adts", "aac", stereo, 24_000)
    with open_audio(data) as sound:
        assert [rate for rate, _ in sound.blocks()] == [48_000, 24_000]
    # ADTS declares no delay: FFmpeg keeps it, and so do we.
    assert len(load_audio(data)) / 16_000 == pytest.approx(1.0, abs=0.15)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(write_media("ipod", "aac"))
    assert len(_decoded(write_media("nut", "aac"))[0]) > 24_000  # its codec tag is a number, not letters
    soundfile.write(tmp_path / "b.flac", sine(0.5, 48_000), 48_000)
    (tmp_path / "b.flac").rename(tmp_path / "b.m4a")
    with open_audio(tmp_path / "a.wav") as mp4, open_audio(tmp_path / "b.m4a") as flac:
        assert (type(mp4).__name__, type(flac).__name__) == ("MediaFile", "AudioFile")


def test_every_door_reads_media_files(tmp_path: Path) -> None:
    data = write_media("webm", "libopus", sine(1.0, 48_000))
    expected = load_audio(data)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("clip.webm", "film.mkv"):
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("a tone")
    np.testing.assert_array_equal(load_audio(folder / "clip.webm"), expected)
    np.testing.assert_array_equal(load_audio(io.BytesIO(data)), expected)
    np.testing.assert_array_equal(file_input(folder / "clip.webm").read(16_000), expected)
    assert prepare(folder, tmp_path / "out", workers=1, progress=False).clips == 2
    rows = [{"audio": {"bytes": data, "path": "a.webm"}, "caption": "a tone", "offset": 0.25, "duration": 0.5}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    prepare(tmp_path / "t.parquet", tmp_path / "segment", workers=0, progress=False)
    for out, samples in (("out", expected), ("segment", expected[4000:12_000])):
        index = ClipIndex.open(tmp_path / out)
        stored, _ = soundfile.read(io.BytesIO(index.read_audio(0)), dtype="float32")
        np.testing.assert_allclose(stored, samples, atol=0.02 if out == "segment" else 2**-15)
        assert index.read_metadata(0)["source_sample_rate"] == 48_000


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_media("ipod", "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    reason, detail = _failure(data, "x.m4a")
    assert reason == "unsupported_format"
    assert "x.m4a: libsndfile does not read .m4a files" in detail
    assert 'pip install "slap-fast[media]", or convert it, for example with `ffmpeg' in detail
    reason, detail = _failure(data)
    assert (reason, 'pip install "slap-fast[media]"' in detail) == ("unreadable", True)


_KEYS = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "11" * 16, "encryption_kid": "22" * 16}
_HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.m4a\n#EXT-X-ENDLIST\n"


def test_files_without_usable_audio_are_named() -> None:
    video = write_media("matroska", "aac", video=True)
    assert _decoded(video)[2] == []
    empty = write_media("matroska", "aac", np.zeros(0, np.float32), video=True)
    assert _failure(write_media("mp4", None, video=True)) == (
        "no_audio",
        "a media file without an audio stream (it has video)",
    )
    assert _failure(write_media("mp4", "aac", options=_KEYS))[0] == "protected"
    for data in (b"\0" * 5000, b"words " * 900, np.random.default_rng(0).bytes(5000)):
        assert _failure(data)[0] == "unreadable"
    with pytest.raises(AudioError, match=r"0\.00 s can be decoded"):
        load_audio(empty)


def test_a_playlist_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.m4a").write_bytes(write_media("ipod", "aac"))
    monkeypatch.chdir(tmp_path)
    for text in (_HLS, b"ffconcat version 1.0\nfile secret.m4a\n"):
        Path("list.m3u8").write_bytes(text)
        with pytest.raises(AudioError, match="nor FFmpeg"):
            open_audio("list.m3u8")


@pytest.mark.parametrize(
    ("container", "options"),
    [("webm", {}), ("mp4", {"movflags": "faststart"}), ("mp4", {}), ("avi", {}), ("flv", {})],
)
def test_a_cut_off_file_follows_the_rule_for_truncated_ones(container: str, options: dict[str, str]) -> None:
    codec = {"avi": "pcm_s16le", "flv": "pcm_s16le"}.get(container, "libopus")
    rate = 44_100 if container == "flv" else 48_000
    data = write_media(container, codec, sine(10.0, rate), rate, options=options)
    assert _failure(data[: len(data) // 2])[0] == "truncated"
    if container == "mp4" and not options:
        # The index is at the end.
        assert "'moov' box" in _failure(data[: len(data) // 2])[1]
        assert "cut off" in _failure(data[:-400], "x.mp4")[1]
        return
    decoded, _, notes = _decoded(data[: len(data) * 98 // 100])
    assert 9.5 < len(decoded) / rate < 9.95
    assert "cut_short" in dict(notes)


def test_damaged_packets_are_noted_and_many_are_an_error() -> None:
    data = bytearray(write_media("ipod", "aac", np.random.default_rng(0).uniform(-0.5, 0.5, 96_000)))
    some, many = data.copy(), data.copy()
    some[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    many[len(data) // 4 : len(data) * 3 // 4] = bytes(len(data) // 2)
    decoded, _, notes = _decoded(bytes(some))
    reason, detail = notes[0]
    assert (reason, "packets are damaged, the first after 1.0 s" in detail) == ("damaged", True)
    assert 90_000 < len(decoded) < 96_000
    assert _failure(bytes(many))[0] in ("unreadable", "truncated")


def test_the_default_audio_stream_of_several_is_read_and_noted() -> None:
    quiet = write_media("matroska", "flac", 0.1 * sine(0.5, 48_000))
    both = _with_second_stream(quiet, sine(0.5, 48_000))
    decoded, _, notes = _decoded(both)
    assert np.abs(decoded).max() == pytest.approx(0.5, abs=0.01)
    assert notes == [("several_streams", "audio stream 2 of 2 was read (flac)")]


def _with_second_stream(first: bytes, second: np.ndarray) -> bytes:
    """Two audio streams, of which the second is the default one."""
    import av
    from av.stream import Disposition

    file = io.BytesIO()
    sources: list[Any] = [av.open(io.BytesIO(data)) for data in (first, write_media("matroska", "flac", second))]
    with av.open(file, "w", format="matroska") as output:
        streams: list[Any] = [output.add_stream_from_template(source.streams.audio[0]) for source in sources]
        streams[0].disposition, streams[1].disposition = Disposition(0), Disposition.default
        for source, stream in zip(sources, streams, strict=True):
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    output.mux(packet)
    return file.getvalue()


def test_a_long_file_takes_constant_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    (tmp_path / "long.mka").write_bytes(write_media("matroska", "pcm_f32le", np.tile(noise, 300)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    threads = threading.active_count()
    with open_audio(tmp_path / "long.mka") as sound:
        assert isinstance(sound, MediaFile)
        assert sum(len(block) for _, block in sound.blocks()) == 300 * 48_000
        assert sound.declared_seconds == pytest.approx(300)
    # 58 MB of samples.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert threading.active_count() == threads


def test_damaged_bytes_give_audio_or_an_audio_error_in_bounded_time(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for container, codec in (("ipod", "aac"), ("webm", "libopus"), ("adts", "aac"), ("mpegts", "aac"), ("avi", "mp3")):
        data = write_media(container, codec, sine(0.2, 48_000))
        for _ in range(12):
            for file in [*corruptions(data, generator), *extremes(data, generator)]:
                began = time.perf_counter()
                with contextlib.suppress(AudioError):
                    assert np.isfinite(load_audio(file)).all()
                assert time.perf_counter() - began < 2
    # FFmpeg's log would hide the messages that matter.
    assert not [line for line in capfd.readouterr().err.splitlines() if "[" in line and "@ 0x" in line]
