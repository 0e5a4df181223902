"""Media files for tests, written by FFmpeg (PyAV)."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def sine(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    """`[n]` float32 sine that fades in and out, with an amplitude of 0.5."""
    time = np.arange(round(seconds * rate)) / rate
    fade = np.minimum(1, 20 * np.minimum(time, seconds - time))
    return (0.5 * fade * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def write_media(
    container: str,
    codec: str | None,
    waveform: np.ndarray | None = None,
    rate: int = 48_000,
    *,
    sample_format: str | None = None,
    video: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """The bytes of a file. `waveform` is `[n]` or `[channels, n]`, of half a second if None; `options` are FFmpeg's."""
    channels = np.atleast_2d(sine(0.5, rate) if waveform is None else waveform)
    with tempfile.NamedTemporaryFile() as file:  # a name, because `faststart` opens the file again
        with av.open(file.name, "w", format=container, container_options=options or {}) as output:
            picture: Any = output.add_stream("mpeg4", rate=10) if video else None
            if video:
                picture.width, picture.height = 64, 48
            if codec is not None:
                _write_audio(output, codec, channels, rate, sample_format)
            if video:
                for number in range(10):
                    image = av.VideoFrame(64, 48, "yuv420p")
                    image.pts, image.time_base = number, Fraction(1, 10)
                    output.mux(picture.encode(image))
                output.mux(picture.encode(None))
        return Path(file.name).read_bytes()


def _write_audio(output: Any, codec: str, channels: np.ndarray, rate: int, sample_format: str | None) -> None:
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(channels)]
    stream: Any = output.add_stream(
        codec, rate=rate, layout=layout, options={"strict": "-2"} if codec == "vorbis" else {}
    )
    context = stream.codec_context
    context.format = sample_format or context.codec.audio_formats[0].name
    if codec == "wmav2":
        context.bit_rate = 64_000
    if channels.size:
        packed = np.ascontiguousarray(channels.T, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(context.format.name, layout, rate, frame_size=context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(piece))
    output.mux(stream.encode(None))
