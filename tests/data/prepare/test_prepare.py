from __future__ import annotations

import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from slap_fast.audio import flac_encoder
from slap_fast.data.format.index import ClipIndex, DatasetError
from slap_fast.data.prepare import prepare
from slap_fast.data.prepare.clip_encoder import ClipEncoder, EncodedClip
from slap_fast.data.prepare.parallel_map import WorkerDied, ordered_map
from slap_fast.data.prepare.source import BytesAudio, ClipItem, GeneratedSource
from slap_fast.data.tokenizer import load_tokenizer
from tests.data.builders import encode, write_tar

_RATES = (8_000, 16_000, 44_100, 48_000)


@dataclass(frozen=True)
class _Clip:
    key: str
    captions: tuple[str, ...] = ("a sound",)
    seconds: float = 0.3
    fill: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def render(self) -> np.ndarray:
        samples = round(self.seconds * 16_000)
        if self.fill is not None:
            return np.full(samples, self.fill, np.float32)
        return np.random.default_rng(len(self.key)).uniform(-0.5, 0.5, samples).astype(np.float32)


def _noise(seconds: float, rate: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))


def _manifest(folder: Path, clips: int) -> Path:
    """Clips of several rates, every fifth unusable."""
    folder.mkdir()
    rows = []
    for clip in range(clips):
        if clip % 5 != 3:
            soundfile.write(folder / f"{clip}.wav", _noise(0.2 + 0.005 * clip, rate := _RATES[clip % 4], clip), rate)
        rows.append({"path": f"{clip}.wav", "captions": [f"sound number {clip}", f"the sound {clip}"]})
    (folder / "m.json").write_text(json.dumps(rows))
    return folder / "m.json"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _report(folder: Path) -> list[tuple[str, bool, str]]:
    rows = [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]
    assert all(row["detail"] for row in rows)
    return [(row["source"], row["kept"], row["reason"]) for row in rows]


def _clips(*clips: _Clip) -> GeneratedSource:
    return GeneratedSource(lambda: iter(clips), "clips", {"number": len(clips)}, len(clips))


def test_a_manifest_becomes_a_dataset(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "in", 15)
    report = prepare(manifest, tmp_path / "out", workers=0, max_shard_bytes=40_000, vocab_size=300, progress=False)
    index = ClipIndex.open(tmp_path / "out")
    assert [index.key(clip) for clip in range(len(index))] == [str(clip) for clip in range(15) if clip % 5 != 3]
    assert (report.clips, report.captions, report.shards) == (12, 24, len(index.shards))
    assert report.seconds == pytest.approx(index.durations.sum())
    assert report.rejected == {"missing_file": 3}
    assert _report(tmp_path / "out") == [(f"{clip}.wav", False, "missing_file") for clip in (3, 8, 13)]
    assert index.read_metadata(2) == {
        "captions": ["sound number 2", "the sound 2"],
        "source": "2.wav",
        "seconds": pytest.approx(0.21, abs=1e-3),
        "source_sample_rate": 44_100,
        "source_channels": 1,
    }
    audio, rate = soundfile.read(io.BytesIO(index.read_audio(1)))
    assert rate == 16_000
    np.testing.assert_allclose(audio, _noise(0.205, 16_000, 1), atol=2 / 32768)
    assert index.info["vocab_size"] == len(load_tokenizer(tmp_path / "out" / "tokenizer"))
    assert not (tmp_path / "out" / ".prepare").exists()
    summary = str(report)
    assert "12 clips" in summary
    assert "3 x missing_file" in summary


def test_shards_stay_below_the_maximum_size(tmp_path: Path) -> None:
    clips = [_Clip(f"{n}", seconds=seconds) for n, seconds in enumerate((0.3, 0.3, 0.3, 4.0, 0.3))]
    prepare(_clips(*clips), tmp_path, workers=0, max_shard_bytes=40_960, progress=False)
    shards = ClipIndex.open(tmp_path).info["shards"]
    # The clip of four seconds exceeds the maximum and gets its own shard.
    assert [(shard["clips"], shard["bytes"] <= 40_960) for shard in shards] == [(3, True), (1, False), (1, True)]


def test_mel_statistics_cover_all_frames(tmp_path: Path) -> None:
    import torch

    from slap_fast.ops.log_mel import log_mel
    from slap_fast.ops.log_mel.config import MelConfig

    prepare(_clips(*(_Clip("x" * n, seconds=0.1 * n) for n in range(1, 6))), tmp_path, workers=0, progress=False)
    index = ClipIndex.open(tmp_path)
    waveforms = [
        torch.from_numpy(soundfile.read(io.BytesIO(index.read_audio(clip)), dtype="float32")[0]) for clip in range(5)
    ]
    ends = torch.tensor([0, *itertools.accumulate(map(len, waveforms))])
    frames = log_mel(torch.cat(waveforms), ends, MelConfig()).double()
    assert index.info["mel_mean"] == pytest.approx(frames.mean().item(), rel=1e-6)
    assert index.info["mel_std"] == pytest.approx(frames.std(correction=0).item(), rel=1e-6)


def test_mel_statistics_decode_only_what_they_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slap_fast.data.prepare import mel_statistics

    quiet, loud = np.full(31 * 16_000, 0.001, np.float32), np.full(90 * 16_000, 0.5, np.float32)

    @dataclass(frozen=True)
    class Long(_Clip):
        def render(self) -> np.ndarray:
            return quiet if self.key == "quiet" else np.concatenate([quiet, loud])

    decoded = []
    mono_blocks = mel_statistics.mono_blocks

    def counted(*arguments: Any) -> Iterator[np.ndarray]:
        for block in mono_blocks(*arguments):
            decoded.append(len(block))
            yield block

    monkeypatch.setattr(mel_statistics, "mono_blocks", counted)
    for key in ("quiet", "long"):
        prepare(_clips(Long(key)), tmp_path / key, workers=0, progress=False)
    means = [ClipIndex.open(tmp_path / key).info["mel_mean"] for key in ("quiet", "long")]
    assert means[0] == means[1]
    assert sum(decoded) < 2 * 50 * 16_000


def test_every_bad_clip_is_reported_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = _noise(1.0, 16_000, 0)
    soundfile.write(folder / "good.wav", good, 16_000)
    soundfile.write(folder / "good.mp3", good, 16_000)
    soundfile.write(folder / "wide.wav", np.stack([_noise(1.0, 192_000, 1)] * 8, axis=1), 192_000)
    soundfile.write(folder / "silent.wav", np.zeros(1600), 16_000)
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    soundfile.write(folder / "short.wav", good[:799], 16_000)
    soundfile.write(folder / "long.wav", np.tile(good, 3), 16_000)
    soundfile.write(folder / "mute.wav", good, 16_000)
    soundfile.write(folder / "cut.flac", good, 16_000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:9_000])
    (folder / "text.wav").write_text("text")
    (folder / "empty.wav").touch()
    files = ["good.wav", "good.mp3", "wide.wav", "silent.wav", "none.wav", "nan.wav", "short.wav", "long.wav"]
    files += ["mute.wav", "cut.flac", "text.wav", "empty.wav", "missing.wav"]
    rows = [{"audio": file, "caption": " \t" if file == "mute.wav" else "a sound"} for file in files]
    (folder / "m.json").write_text(json.dumps([*rows, {"audio": None, "caption": "x"}]))
    report = prepare(
        folder / "m.json", tmp_path / "out", workers=0, min_duration=0.05, max_duration=2.0, progress=False
    )
    assert _report(tmp_path / "out") == [
        ("good.mp3", True, "renamed"),
        ("silent.wav", True, "silent"),
        ("none.wav", False, "no_samples"),
        ("nan.wav", False, "not_finite"),
        ("short.wav", False, "too_short"),
        ("long.wav", False, "too_long"),
        ("mute.wav", False, "no_captions"),
        ("cut.flac", False, "unreadable"),
        ("text.wav", False, "unreadable"),
        ("empty.wav", False, "empty_file"),
        ("missing.wav", False, "missing_file"),
        ("m.json[13]", False, "malformed_row"),
    ]
    assert report.noted == {"renamed": 1, "silent": 1}
    index = ClipIndex.open(tmp_path / "out")
    assert [index.key(clip) for clip in range(len(index))] == ["good", "good-2", "wide", "silent"]
    assert index.durations.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.1])
    assert index.read_metadata(2)["source_channels"] == 8


def test_a_source_without_a_good_clip_raises_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none of 2 clips can be used.*1 x no_captions, 1 x not_finite"):
        prepare(_clips(_Clip("a", ()), _Clip("b", fill=np.nan)), tmp_path, workers=0, progress=False)
    assert _report(tmp_path) == [("a", False, "no_captions"), ("b", False, "not_finite")]
    with pytest.raises(DatasetError, match="the source is empty"):
        prepare(_clips(), tmp_path, workers=0, progress=False)


def test_a_folder_of_classes_without_captions_is_told_how_to_caption_them(tmp_path: Path) -> None:
    (tmp_path / "sounds" / "dog").mkdir(parents=True)
    soundfile.write(tmp_path / "sounds" / "dog" / "1.wav", _noise(0.5, 16_000, 0), 16_000)
    with pytest.raises(DatasetError, match="for audio with classes, give --caption-template 'the sound of"):
        prepare(tmp_path / "sounds", tmp_path / "out", workers=0, progress=False)


def test_generated_clips_keep_their_metadata(tmp_path: Path) -> None:
    clip = _Clip("scene 1", ("a dog", "a dog "), metadata={"events": [{"event": "dog", "onset": 0.5}]})
    prepare(_clips(clip, clip), tmp_path, workers=0, progress=False)
    index = ClipIndex.open(tmp_path)
    metadata = index.read_metadata(0)
    assert metadata["captions"] == ["a dog"]
    assert metadata["metadata"] == clip.metadata
    assert index.key(0) != index.key(1)


def test_existing_tars_become_a_dataset_without_extraction(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    buffer = io.BytesIO()
    soundfile.write(buffer, _noise(1.0, 44_100, 0), 44_100, format="OGG", subtype="VORBIS")
    members = {"1.ogg": buffer.getvalue(), "1.txt": b"a dog", "2.ogg": b"", "2.txt": b"x", "3.wav": b""}
    write_tar(tmp_path / "in/a.tar", members)
    (tmp_path / "in/b.tar").write_bytes(b"damaged" * 500)
    report = prepare(tmp_path / "in", tmp_path / "out", workers=0, progress=False)
    index = ClipIndex.open(tmp_path / "out")
    assert (index.durations.tolist(), index.read_metadata(0)["captions"]) == ([1.0], ["a dog"])
    assert report.rejected == {"empty_file": 1, "no_captions": 1, "malformed_tar": 1}


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "in", 20)
    for workers in (0, 2):
        prepare(manifest, tmp_path / str(workers), workers=workers, max_shard_bytes=40_000, progress=False)
    assert _content(tmp_path / "0") == _content(tmp_path / "2")


class _Stopped(Exception):
    pass


def _stopping_after(clips: list[_Clip], number: int) -> Iterator[_Clip]:
    yield from clips[:number]
    raise _Stopped


@pytest.mark.parametrize("stops", [[1], [5, 9], [12, 13, 14], [20]])
def test_a_resumed_run_gives_the_same_bytes(tmp_path: Path, stops: list[int]) -> None:
    clips = [
        _Clip(f"{n % 7}", () if n % 4 == 2 else ("a",), 0.2 + 0.01 * n, 0.0 if n == 9 else None) for n in range(20)
    ]
    rendered = []

    def source(number: int | None) -> GeneratedSource:
        def make() -> Iterator[_Clip]:
            for clip in clips if number is None else _stopping_after(clips, number):
                rendered.append(clip)
                yield clip

        return GeneratedSource(make, "clips", {})

    options: Any = {"workers": 0, "max_shard_bytes": 40_960, "vocab_size": 300, "progress": False}
    prepare(source(None), tmp_path / "whole", **options)
    for stop in stops:
        with pytest.raises(_Stopped):
            prepare(source(stop), tmp_path / "stopped", **options)
        assert not (tmp_path / "stopped" / "dataset.json").exists()
    standing = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("*.tar")}
    prepare(source(None), tmp_path / "stopped", **options)
    assert _content(tmp_path / "stopped") == _content(tmp_path / "whole")
    assert all((tmp_path / "stopped" / name).stat().st_mtime_ns == time for name, time in standing.items())
    assert bool(standing) == (stops[-1] > 3)


_PREPARE = "import sys; from slap_fast.data.prepare import prepare; prepare(*sys.argv[1:3], {})"


def _start(manifest: Path, out: Path, options: str, **keywords: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PREPARE.format(options), str(manifest), str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, **keywords)


def test_a_killed_run_leaves_no_process_and_can_be_resumed(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "in", 120)
    process = _start(manifest, tmp_path / "out", "workers=2, max_shard_bytes=300_000, progress=False")
    first = tmp_path / "out" / "shard-000000.tar"
    deadline = time.monotonic() + 60
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    # The workers inherit stderr, so it closes when the last of them has ended.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert not (tmp_path / "out" / "dataset.json").exists()
    inode = first.stat().st_ino
    options: Any = {"workers": 0, "max_shard_bytes": 300_000, "progress": False}
    report = prepare(manifest, tmp_path / "out", **options)
    assert (report.clips, report.rejected) == (96, {"missing_file": 24})
    assert first.stat().st_ino == inode
    prepare(manifest, tmp_path / "whole", **options)
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def test_a_full_disk_raises_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "in", 12)
    options = "workers=0, max_shard_bytes=200_000, progress=False"
    limit = 60_000
    process = _start(
        manifest,
        tmp_path / "out",
        options,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "DatasetError" in errors
    assert f"{tmp_path / 'out' / 'shard-000000.tar'}: cannot write: File too large" in errors
    assert "run the same command again to continue" in errors
    report = prepare(manifest, tmp_path / "out", workers=0, max_shard_bytes=200_000, progress=False)
    assert report.clips == len(ClipIndex.open(tmp_path / "out")) == 10


def test_a_failed_write_of_a_large_clip_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slap_fast.audio.flac_encoder._IN_MEMORY_BYTES", 1000)
    clip = _Clip("a")

    def clips() -> Iterator[_Clip]:
        (tmp_path / ".prepare" / "spill").rmdir()
        yield clip

    with pytest.raises(DatasetError, match=r"\.prepare/spill/\w+\.flac: cannot write: No such file"):
        prepare(GeneratedSource(clips, "c", {}), tmp_path, workers=0, progress=False)
    assert prepare(GeneratedSource([clip], "c", {}), tmp_path, workers=0, progress=False).clips == 1
    assert ClipIndex.open(tmp_path).records["samples"].tolist() == [4800]


@pytest.mark.parametrize("file", ["index.npy", "dataset.json", "report.jsonl"])
def test_a_full_disk_at_the_end_loses_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    clips = _clips(_Clip("a"), _Clip("b"))
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == file:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DatasetError, match=f"{file}: cannot write: No space left on device"):
        prepare(clips, tmp_path, workers=0, progress=False)
    with pytest.raises(DatasetError, match=r"dataset\.json: missing.*not finished"):
        ClipIndex.open(tmp_path)
    monkeypatch.undo()
    tar = (tmp_path / "shard-000000.tar").stat()
    assert prepare(clips, tmp_path, workers=0, progress=False).clips == 2
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == tar.st_mtime_ns


def test_preparing_a_finished_dataset_changes_nothing(tmp_path: Path) -> None:
    clips = _clips(_Clip("a"), _Clip("b", ()))
    first = prepare(clips, tmp_path, workers=0, progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = prepare(clips, tmp_path, workers=0, progress=False)
    assert not first.already_complete
    assert again.already_complete
    assert "nothing done" in str(again)
    assert (again.clips, again.rejected) == (first.clips, first.rejected)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_other_arguments_for_the_same_folder_raise_and_are_listed(tmp_path: Path) -> None:
    clips = [_Clip("a"), _Clip("b")]
    with pytest.raises(_Stopped):
        prepare(GeneratedSource(_stopping_after(clips, 1), "c", {"seed": 1}), tmp_path, workers=0, progress=False)
    with pytest.raises(DatasetError, match=r"other arguments \(source\.seed: 1 then, 2 now\)"):
        prepare(GeneratedSource(clips, "c", {"seed": 2}), tmp_path, workers=0, progress=False)
    prepare(GeneratedSource(clips, "c", {"seed": 1}), tmp_path, workers=0, progress=False)
    with pytest.raises(DatasetError, match=r"other arguments \(--min-duration: 0.0 then, 0.1 now\)"):
        prepare(GeneratedSource(clips, "c", {"seed": 1}), tmp_path, workers=0, progress=False, min_duration=0.1)


def test_a_changed_manifest_counts_as_other_arguments(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "in", 2)
    prepare(manifest, tmp_path / "out", workers=0, progress=False)
    manifest.write_text(manifest.read_text().replace("number", "no."))
    with pytest.raises(DatasetError, match=r"other arguments \(the content of SOURCE \(SHA-256\): "):
        prepare(manifest, tmp_path / "out", workers=0, progress=False)


def test_foreign_tars_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(DatasetError, match="choose an empty folder"):
        prepare(_clips(_Clip("a")), tmp_path, workers=0, progress=False)
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"precious"


def test_a_second_run_in_the_same_folder_raises(tmp_path: Path) -> None:
    def clips() -> Iterator[_Clip]:
        with pytest.raises(DatasetError, match="another `slap-fast prepare` is writing here"):
            prepare(_clips(_Clip("b")), tmp_path, workers=0, progress=False)
        yield _Clip("a")

    assert prepare(GeneratedSource(clips, "c", {}), tmp_path, workers=0, progress=False).clips == 1


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file: cannot be created or opened"):
        prepare(_clips(_Clip("a")), tmp_path / "file", workers=0, progress=False)


@pytest.mark.parametrize(
    "arguments", [{"max_shard_bytes": 0}, {"min_duration": -1}, {"min_duration": 2, "max_duration": 1}]
)
def test_invalid_limits_raise(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        prepare(_clips(_Clip("a")), tmp_path / "out", workers=0, progress=False, **arguments)


def test_an_item_that_kills_its_worker_loses_only_itself() -> None:
    items = [f"{n} * 2" for n in range(30)]
    items[7] = items[23] = "__import__('os').abort()"
    results = list(ordered_map(eval, items, workers=2))
    assert [item for item, _ in results] == items
    assert [result for _, result in results] == [WorkerDied() if n in (7, 23) else n * 2 for n in range(30)]


def test_the_parallel_map_bounds_the_items_in_flight() -> None:
    drawn = 0

    def items() -> Iterator[str]:
        nonlocal drawn
        for n in range(1000):
            drawn += 1
            yield str(n)

    results = ordered_map(eval, items(), workers=1)
    assert [next(results) for _ in range(20)] == [(str(n), n) for n in range(20)]
    assert drawn <= 20 + 4
    results.close()


def test_an_exception_in_a_worker_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(eval, ["1", "1 / 0"], workers=1))


def test_a_clip_without_a_seek_table_is_kept_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands for a libsndfile that does not pass on the frames of libFLAC one by one.
    monkeypatch.setattr(flac_encoder, "seek_table", lambda *_: None)
    wav = encode(np.full(9000, 16_384, np.int16), format="WAV")
    clip = ClipEncoder(tmp_path, 0.0, None)(ClipItem("a", ("a dog",), BytesAudio(wav), "a"))
    assert isinstance(clip, EncodedClip)
    assert [reason for reason, _ in clip.notes] == ["no_seek_table"]
    assert isinstance(clip.flac.audio, bytes)
    pcm, _ = soundfile.read(io.BytesIO(clip.flac.audio), dtype="int16")
    assert (pcm == 16_384).all()
