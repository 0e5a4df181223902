"""WebDataset tars as sources of `prepare`: compressed ones give what plain ones give."""

from __future__ import annotations

import gzip
import json
import lzma
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare import prepare, tar_contents
from slap_fast.data.prepare.source import ClipItem, Rejection
from slap_fast.data.prepare.tar_source import TarSource
from tests.audio.media_files import write_media
from tests.data.builders import encode, write_tar


def _members(clips: int, seconds: float = 0.1) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    members: dict[str, bytes] = {}
    for clip in range(clips):
        pcm = generator.integers(-9000, 9000, round(seconds * 16_000)).astype(np.int16)
        members |= {
            f"{clip}.json": json.dumps({"caption": f"sound {clip}"}).encode(),
            f"{clip}.wav": encode(pcm, format="WAV"),
        }
    return members


def _clips(folder: Path) -> list[tuple[str, bytes, list[str]]]:
    index = ClipIndex.open(folder)
    return [
        (index.key(clip), bytes(index.read_audio(clip)), index.read_metadata(clip)["captions"])
        for clip in range(len(index))
    ]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".tar.gz", gzip.compress), (".tgz", gzip.compress), (".tar.xz", lzma.compress)],
)
def test_a_compressed_tar_gives_the_clips_and_counts_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(tar_contents, "_IN_MEMORY_BYTES", 3000)  # most clips go through temporary files
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    members = _members(5) | {
        "5.m4a": write_media("ipod", "aac"),
        "5.txt": b"a tone",
        "6.txt": b"no audio",
        "7.cls": b"1",
    }
    write_tar(tmp_path / "a.tar", members)
    plain = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "in").mkdir()
    # Two streams in one file, as `cat a.gz b.gz` gives and as parallel compressors write.
    (tmp_path / "in" / f"a{suffix}").write_bytes(compress(plain[:4096]) + compress(plain[4096:]))
    reports = [
        prepare(source, tmp_path / out, workers=workers, progress=False)
        for source, out, workers in ((tmp_path / "a.tar", "plain", 0), (tmp_path / "in", "compressed", 1))
    ]
    assert _clips(tmp_path / "compressed") == _clips(tmp_path / "plain")
    assert [(r.clips, r.seen, r.merged, r.rejected, r.noted) for r in reports[:1]] == [
        (r.clips, r.seen, r.merged, r.rejected, r.noted) for r in reports[1:]
    ]
    assert reports[0].clips == 6
    assert not list(tmp_path.glob("slap-fast-*"))


def test_an_interrupted_run_on_a_compressed_tar_continues_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", _members(9))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    arguments: dict[str, Any] = {"workers": 0, "max_shard_bytes": 20_000, "progress": False}
    prepare(tmp_path / "a.tar.gz", tmp_path / "whole", **arguments)
    source = TarSource([tmp_path / "a.tar.gz"])
    iterate = TarSource.__iter__

    def stopped(self: TarSource) -> Iterator[ClipItem | Rejection]:
        for number, item in enumerate(iterate(self)):
            if number == 7:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(TarSource, "__iter__", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", **arguments)
    monkeypatch.undo()
    assert list((tmp_path / "out").glob("*.tar"))
    prepare(tmp_path / "a.tar.gz", tmp_path / "out", **arguments)
    for path in (tmp_path / "whole").glob("*.*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_damaged_or_unknown_compression_is_named_and_intact_clips_are_kept(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", _members(30))
    data = gzip.compress((tmp_path / "a.tar").read_bytes(), mtime=0)
    (tmp_path / "b.tar.gz").write_bytes(data[: len(data) // 2])
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    (tmp_path / "c.tar.gz").write_bytes(flipped)
    (tmp_path / "d.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    tars = [tmp_path / name for name in ("b.tar.gz", "c.tar.gz", "d.tar.zst")]
    reports = [report for report in TarSource(tars) if isinstance(report, Rejection)]
    # The last clip before the damage may have lost its audio.
    details = [report.detail for report in reports if report.reason == "malformed_tar"]
    assert "truncated: the compressed data ends too early" in details[0]
    assert "the rest of this tar is lost" in details[1]
    assert "compressed by zstd, which is not read; decompress it" in details[2]
    assert sum(isinstance(item, ClipItem) for item in TarSource(tars)) > 10
