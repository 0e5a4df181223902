"""Decoder fuzzing (`python -m tests.data.fuzzing`): feeds damaged audio of every format to every decoder.

Run it as a separate process: the bugs it looks for kill the process. It prints one line per format and fails if a
decoder raises an unexpected error, returns something that is not audio, disagrees with another decoder, or takes too
much memory. `--folder` keeps the file being decoded, to investigate a crash.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from torch import Tensor

from slap_fast import native
from slap_fast.audio.errors import AudioError
from slap_fast.audio.flac_encoder import encode_flac
from slap_fast.audio.waveform import load_audio
from slap_fast.data.decoding import DecodeFailure, Decoder, GpuDecoder, make_decoder

PREPARED = "with a seek table"  # as `slap-fast prepare` writes FLAC

FORMATS = {
    "WAV": ("WAV", "PCM_16"),
    "WAV, float": ("WAV", "FLOAT"),
    "FLAC": ("FLAC", "PCM_16"),
    "FLAC, prepared": ("FLAC", PREPARED),
    "FLAC, 24 bits": ("FLAC", "PCM_24"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
    "Ogg Vorbis": ("OGG", "VORBIS"),
    "Ogg Opus": ("OGG", "OPUS"),
    "AIFF": ("AIFF", "PCM_16"),
    "RF64": ("RF64", "PCM_16"),
    "W64": ("W64", "PCM_16"),
    "CAF": ("CAF", "PCM_16"),
    "AU": ("AU", "PCM_16"),
}
SAMPLES = 3000
# A clip takes a megabyte; the rest is for the tables of the codecs.
MAX_GROWTH = 300 << 20
MAX_SECONDS = 5.0
_ORDERS: tuple[Literal["little"], Literal["big"]] = ("little", "big")
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def corruptions(blob: bytes, generator: np.random.Generator) -> list[bytes]:
    """One of each kind of damage, at random places."""
    place, other = sorted(generator.integers(0, len(blob), 2).tolist())
    flip = bytearray(blob)
    flip[place] ^= 1 << int(generator.integers(8))
    noise = bytearray(blob)
    noise[place : place + 16] = generator.bytes(len(noise[place : place + 16]))
    header = bytearray(blob)
    header[int(generator.integers(4, 64))] = int(generator.integers(256))
    return [bytes(flip), bytes(noise), bytes(header), blob[:other], blob[:place] + blob[other:], blob + blob[place:]]


def extremes(blob: bytes, generator: np.random.Generator) -> list[bytes]:
    """Header fields (counts, sizes, rates) set to the ends of their ranges."""
    found = []
    for width in (1, 2, 4):
        for order in _ORDERS:
            data = bytearray(blob)
            place = int(generator.integers(0, min(128, len(data) - width)))
            value = int(generator.choice(_EXTREMES)) % 2 ** (8 * width)
            data[place : place + width] = value.to_bytes(width, order)
            found.append(bytes(data))
    return found


def encoded(format: str, subtype: str, generator: np.random.Generator) -> bytes:
    file = io.BytesIO()
    waveform = (np.cumsum(generator.standard_normal(SAMPLES)) / 200).clip(-0.9, 0.9)
    if subtype == PREPARED:
        audio = encode_flac([waveform.astype(np.float32)], Path("not written")).audio
        assert isinstance(audio, bytes)
        return audio
    soundfile.write(file, waveform, 16_000, format=format, subtype=subtype)
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.data.fuzzing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="each round decodes 12 damaged files of every format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--folder", type=Path, help="folder for the file being decoded (default: a temporary folder)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name in options.formats:
            print(json.dumps({"format": name} | fuzz(name, options.rounds, options.seed, folder)), flush=True)
    return 0


def fuzz(name: str, rounds: int, seed: int, folder: Path) -> dict[str, object]:
    generator = np.random.default_rng([seed, list(FORMATS).index(name)])
    decoders: list[Decoder] = [make_decoder("soundfile", 1), GpuDecoder("cpu", 1)]
    if native.unavailable() is None:
        decoders.append(make_decoder("native", 2))
    if _has_dali():
        # Batch size 1 tests the file itself; in a batch of 64, one bad file makes DALI fail the whole batch.
        decoders += [make_decoder("dali", 2, 1), make_decoder("dali", 2, 64)]
    outcomes: Counter[str] = Counter()
    slowest, before = 0.0, _peak()
    for _ in range(rounds):
        blob = encoded(*FORMATS[name], generator)
        damaged = [*corruptions(blob, generator), *extremes(blob, generator)]
        began = time.perf_counter()
        for file in damaged:
            (folder / "at-work").write_bytes(file)
            outcomes[_prepare(file, folder)] += 1
        by_decoder = [decoder.decode(damaged, [SAMPLES] * len(damaged)) for decoder in decoders]
        for items in zip(*by_decoder, strict=True):
            outcomes["failure" if isinstance(items[0], DecodeFailure) else "decoded"] += 1
            _check(items)
        slowest = max(slowest, (time.perf_counter() - began) / len(damaged))
    growth = _peak() - before
    if growth > MAX_GROWTH:
        raise AssertionError(f"{name}: clips of {SAMPLES} samples took {growth >> 20} MiB")
    if slowest > MAX_SECONDS:
        raise AssertionError(f"{name}: a file took {slowest:.1f} s on average over a round")
    return {"outcomes": dict(outcomes.most_common()), "MiB": growth >> 20, "slowest": round(slowest, 3)}


def _prepare(file: bytes, folder: Path) -> str:
    """Converts a file as `slap-fast prepare` does; returns "prepared" or the reason of the failure."""
    try:
        waveform = load_audio(file)
        encode_flac([waveform], folder / "spill")
    except AudioError as error:
        return error.reason
    if not np.isfinite(waveform).all():
        raise AssertionError("the prepared audio is not finite")
    return "prepared"


def _check(outcomes: Sequence[Tensor | DecodeFailure]) -> None:
    first = outcomes[0]
    for outcome in outcomes:
        if isinstance(outcome, Tensor):
            if len(outcome) != SAMPLES or not bool(outcome.isfinite().all()):
                raise AssertionError(
                    f"got {len(outcome)} samples, or non-finite ones, instead of {SAMPLES} finite ones"
                )
            if not isinstance(first, Tensor) or not bool((outcome == first).all()):
                raise AssertionError("decoders disagree")
        elif outcome != first:
            raise AssertionError(f"decoders disagree: {outcome}, {first}")


def _has_dali() -> bool:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main())
