"""A dataset with a fifth of bad clips, with as many kinds of damage as possible, passes through the loader."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slap_fast.data.format.dataset_files import INDEX_NAME
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.loading.dropped_clips import DropReport
from tests.data.builders import (
    DECODERS,
    StoredClip,
    decoder_of,
    encode,
    make_clip,
    make_loader,
    make_tokenizer,
    write_dataset,
)

Damage = Callable[[StoredClip], StoredClip]


def noise(samples: int, channels: int | None = None) -> np.ndarray:
    shape = (samples,) if channels is None else (samples, channels)
    return (np.random.default_rng(3).standard_normal(shape) * 5000).astype(np.int16)


def audio(change: Callable[[StoredClip], bytes]) -> Damage:
    return lambda clip: dataclasses.replace(clip, audio=change(clip))


def metadata(content: bytes) -> Damage:
    return lambda clip: dataclasses.replace(clip, metadata=content, captions=1)


def flipped(place: Callable[[int], int], bits: int = 0xFF) -> Damage:
    def change(clip: StoredClip) -> bytes:
        data = bytearray(clip.audio)
        data[place(len(data))] ^= bits
        return bytes(data)

    return audio(change)


def claimed(samples: int) -> Damage:
    """Replaces the length in the header; 0 means unknown."""

    def change(clip: StoredClip) -> bytes:
        field = int.from_bytes(clip.audio[21:26], "big") >> 36 << 36 | samples
        return clip.audio[:21] + field.to_bytes(5, "big") + clip.audio[26:]

    return audio(change)


def one_bad_sample(clip: StoredClip, value: float) -> bytes:
    waveform = noise(clip.samples).astype(np.float32) / 32768
    waveform[clip.samples // 2] = value
    return encode(waveform, format="WAV", subtype="FLOAT")


BAD: dict[str, Damage] = {
    "no bytes": audio(lambda clip: b""),
    "text": audio(lambda clip: b"this is not audio but a caption\n" * 20),
    "random bytes": audio(lambda clip: np.random.default_rng(clip.samples).bytes(4000)),
    "zeros": audio(lambda clip: bytes(4000)),
    "gzip of the FLAC": audio(lambda clip: gzip.compress(clip.audio)),
    "cut after the header": audio(lambda clip: clip.audio[:60]),
    "cut in the middle": audio(lambda clip: clip.audio[: len(clip.audio) // 2]),
    "cut at the end": audio(lambda clip: clip.audio[:-20]),
    "beginning missing": audio(lambda clip: clip.audio[100:]),
    "flipped magic": flipped(lambda size: 1),
    "flipped bit in the first frame": flipped(lambda size: min(9000, size // 4), 1),
    "flipped bit in the middle": flipped(lambda size: size // 2, 1),
    "flipped byte in the last frame": flipped(lambda size: size - 100),
    "zeros written over the middle": audio(
        lambda clip: clip.audio[: len(clip.audio) // 2] + bytes(300) + clip.audio[len(clip.audio) // 2 + 300 :]
    ),
    "stereo": audio(lambda clip: encode(noise(clip.samples, 2))),
    "eight channels": audio(lambda clip: encode(noise(clip.samples, 8))),
    "another rate": audio(lambda clip: encode(noise(clip.samples), 44_100)),
    "shorter than the index says": audio(lambda clip: encode(noise(clip.samples - 1))),
    "longer than the index says": audio(lambda clip: encode(noise(clip.samples + 1))),
    "unknown length": claimed(0),
    "275 GB by its header": claimed(2**36 - 1),
    "header block beyond the end": audio(lambda clip: clip.audio[:42] + b"\x04\xff\xff\xff" + clip.audio[42:]),
    "no samples": audio(lambda clip: encode(noise(0), format="WAV")),
    "NaN in a float WAV": audio(lambda clip: one_bad_sample(clip, np.nan)),
    "infinity in a float WAV": audio(lambda clip: one_bad_sample(clip, -np.inf)),
    "cut Ogg": audio(lambda clip: encode(noise(clip.samples), format="OGG", subtype="VORBIS")[:3500]),
    "MP3 with its padding": audio(
        lambda clip: encode(noise(clip.samples + 500), format="MP3", subtype="MPEG_LAYER_III")
    ),
    "JSON cut": metadata(b'{"captions": ["a be'),
    "JSON not in UTF-8": metadata(b'{"captions": ["\xff\xfe"]}'),
    "JSON without end": metadata(b'{"captions": ' + b"[" * 100_000),
    "no caption": metadata(b"{}"),
    "empty list of captions": metadata(b'{"captions": []}'),
    "blank caption": metadata(b'{"captions": [" "]}'),
    "number as caption": metadata(b'{"captions": [7]}'),
    "no metadata at all": metadata(b""),
}
# Damage to the index record of a clip, after the index was validated.
BAD_RECORDS: dict[str, Callable[[np.void, int], None]] = {
    "audio beyond the tar": lambda record, size: record.__setitem__("audio_offset", size + 512),
    "metadata beyond the tar": lambda record, size: record.__setitem__("meta_offset", 2**63 + 7),
    "audio at another place": lambda record, size: record.__setitem__("audio_offset", record["audio_offset"] + 512),
    "audio of four gigabytes": lambda record, size: record.__setitem__("audio_size", 2**32 - 1),
    "a shard that there is not": lambda record, size: record.__setitem__("shard", 2**31),
    "another rate in the index": lambda record, size: record.__setitem__("sample_rate", 2**31),
    "no samples in the index": lambda record, size: record.__setitem__("samples", 0),
    "2^60 samples in the index": lambda record, size: record.__setitem__("samples", 2**60),
}
# Unusual but valid.
GOOD: dict[str, Damage] = {
    "silence": audio(lambda clip: encode(np.zeros(clip.samples, np.int16))),
    "one value throughout": audio(lambda clip: encode(np.full(clip.samples, 3000, np.int16))),
    "8 bits": audio(lambda clip: encode(noise(clip.samples), subtype="PCM_S8")),
    "24 bits": audio(lambda clip: encode(noise(clip.samples), subtype="PCM_24")),
    "WAV": audio(lambda clip: encode(noise(clip.samples), format="WAV")),
    "Ogg of the right length": audio(lambda clip: encode(noise(clip.samples), format="OGG", subtype="VORBIS")),
    "bytes after the end": audio(lambda clip: clip.audio + bytes(1000)),
}
CLIPS, BATCH = 256, 32


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipIndex, dict[str, str]]:
    return write_damaged(tmp_path_factory.mktemp("damaged") / "data")


def write_damaged(folder: Path) -> tuple[ClipIndex, dict[str, str]]:
    """256 clips, and the damage of each bad one by its key, or by its row if its name is unreadable too."""
    clips = [make_clip(number) for number in range(CLIPS)]
    planted: dict[str, str] = {}
    kinds = [*BAD, *BAD_RECORDS]
    places = {5 * number + 2: kinds[number % len(kinds)] for number in range(CLIPS // 5)}
    for clip, kind in places.items():
        planted[f"clip-{clip}"] = kind
        if kind in BAD:
            clips[clip] = BAD[kind](clips[clip])
    for number, kind in enumerate(GOOD):
        clips[5 * number] = GOOD[kind](clips[5 * number])
    index = write_dataset(folder, clips, clips_per_shard=50)

    records = np.load(index.folder / INDEX_NAME, mmap_mode="r+")
    for clip, kind in places.items():
        if kind in BAD_RECORDS:
            shard = index.folder / index.shard_name(clip)
            BAD_RECORDS[kind](records[clip], shard.stat().st_size)
    records.flush()
    # The tar header before the audio: only its name is read from it.
    nameless = next(clip for clip, kind in places.items() if kind == "text")
    with open(index.folder / index.shard_name(nameless), "r+b") as tar:
        tar.seek(int(records[nameless]["audio_offset"]) - 512)
        tar.write(b"\xff" * 512)
    planted[f"row {nameless}"] = planted.pop(f"clip-{nameless}")
    # Without a valid position in the tar there is no name either.
    for clip, kind in places.items():
        if kind in ("audio beyond the tar", "audio at another place", "a shard that there is not"):
            planted[f"row {clip}"] = planted.pop(f"clip-{clip}")
    return index, planted


def report_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", DECODERS)
def test_an_epoch_with_a_fifth_of_bad_clips_reports_exactly_these(
    kind: str, damaged: tuple[ClipIndex, dict[str, str]], tmp_path: Path
) -> None:
    index, planted = damaged
    assert len(planted) >= CLIPS // 5
    assert len(set(planted.values())) == len(BAD) + len(BAD_RECORDS) >= 20
    steps = CLIPS // BATCH
    loader = make_loader(
        index,
        make_tokenizer(),
        batch_size=BATCH,
        stop_step=steps,
        decoder=decoder_of(kind, 2, BATCH),
        report=DropReport(tmp_path / "run" / "dropped.jsonl", start_step=0),
    )
    batches = [batch for _, batch in loader]
    assert [len(batch) for batch in batches] == [BATCH] * steps
    assert all(bool(batch.waveform.isfinite().all()) for batch in batches)

    bad = {int(key.replace("clip-", "").replace("row ", "")) for key in planted}
    assert {clip for batch in batches for clip in batch.clip_ids.tolist()} == set(range(CLIPS)) - bad
    reported = report_of(tmp_path / "run" / "dropped.jsonl")
    assert {entry["key"] for entry in reported} == set(planted)
    assert all(entry["reason"] and entry["shard"].startswith("shard") for entry in reported)
    assert [tuple(entry.values()) for entry in reported] == loader.dropped


def test_ranks_share_a_report_and_a_resumed_run_repeats_no_entry(
    damaged: tuple[ClipIndex, dict[str, str]], tmp_path: Path
) -> None:
    index, planted = damaged
    path = tmp_path / "dropped.jsonl"

    def run(start: int, stop: int) -> None:
        for rank in range(2):
            report = DropReport(path, start_step=start)
            for _ in make_loader(
                index,
                make_tokenizer(),
                batch_size=BATCH,
                start_step=start,
                stop_step=stop,
                rank=rank,
                world_size=2,
                report=report,
            ):
                pass

    run(0, 5)
    first = report_of(path)
    # As a crash may leave it.
    path.write_text(path.read_text() + '{"key": "clip-')
    run(3, 8)
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines[: len(first)]] == first
    assert lines.pop(len(first)) == '{"key": "clip-'
    entries = [json.loads(line) for line in lines]
    assert len({tuple(entry.values()) for entry in entries}) == len(entries)
    assert {entry["key"] for entry in entries} == set(planted)
    assert {entry["step"] for entry in entries} == set(range(8))


def test_a_report_that_cannot_be_written_does_not_stop_the_run(
    damaged: tuple[ClipIndex, dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index, _ = damaged
    (tmp_path / "dropped.jsonl").mkdir()
    report = DropReport(tmp_path / "dropped.jsonl", start_step=0)
    assert len(list(make_loader(index, make_tokenizer(), batch_size=BATCH, stop_step=2, report=report))) == 2
    assert "dropped.jsonl: cannot write" in caplog.text


def test_dropped_clips_are_reported_before_too_many_end_the_run(tmp_path: Path) -> None:
    index = write_dataset(tmp_path / "data", [BAD["stereo"](make_clip(number)) for number in range(30)])
    report = DropReport(tmp_path / "dropped.jsonl", start_step=0)
    loader = make_loader(index, make_tokenizer(), max_consecutive_failures=20, report=report)
    with pytest.raises(RuntimeError, match="21 clips in a row"):
        next(iter(loader))
    assert len(report_of(tmp_path / "dropped.jsonl")) == len(set(loader.dropped))
