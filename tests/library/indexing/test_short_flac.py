"""Short FLAC files by native code: the samples of the stream reader, to which anything unusual is left."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from slap_fast import native
from slap_fast.audio.waveform import load_audio
from slap_fast.library.indexing.decoding import Decoder, End, Window
from slap_fast.library.indexing.jobs import Failed, Job
from slap_fast.library.indexing.short_flac import decode_short_flac
from tests.library.indexing.conftest import Write

pytestmark = pytest.mark.skipif(native.isa() is None, reason="no native module")


def _flac(samples: np.ndarray, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC")
    return file.getvalue()


def _noise(seconds: float, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * 16_000), channels))


@pytest.mark.parametrize("seconds", [1 / 16_000, 0.3, 12.0])
def test_samples_are_those_of_the_stream_reader(seconds: float) -> None:
    file = _flac(_noise(seconds))
    decoded = decode_short_flac(file, 16_000)
    assert decoded is not None
    assert decoded.declared_seconds == len(decoded.samples) / 16_000
    np.testing.assert_array_equal(decoded.samples, load_audio(io.BytesIO(file)))


def test_what_is_not_a_short_intact_mono_file_at_this_rate_is_left_to_the_stream_reader() -> None:
    intact = _flac(_noise(2.0))
    flipped = bytearray(intact)
    flipped[len(intact) // 2] ^= 1
    others = {
        "empty": b"",
        "stereo": _flac(_noise(1.0, 2)),
        "another rate": _flac(_noise(1.0), 44_100),
        "cut off": intact[:-100],
        "damaged": bytes(flipped),
        "two streams": intact + intact,
        "hours of silence in few bytes": _flac(np.zeros(130 * 16_000)),
        "not audio": b"fLaC" + bytes(100),
    }
    assert {name for name, file in others.items() if decode_short_flac(file, 16_000) is None} == others.keys()


def test_a_damaged_file_fails_with_the_reason_of_the_stream_reader(write: Write) -> None:
    good, bad = write("good.flac"), write("bad.flac")
    content = _flac(_noise(1.0))
    good.write_bytes(content)
    bad.write_bytes(content[: len(content) // 2])
    decoder = Decoder(
        [Job(n, str(path), size=path.stat().st_size) for n, path in enumerate((good, bad))], 16_000, 30, 1
    )
    items = []
    while taken := decoder.take(60.0):
        items += taken
    assert [type(item) for item in items] == [Window, End, Failed]
    assert isinstance(items[0], Window)
    assert isinstance(items[2], Failed)
    np.testing.assert_array_equal(items[0].samples, load_audio(good))
    assert items[2].reason == "unreadable"
