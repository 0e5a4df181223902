"""Several machines prepare one dataset: parts, and their merge."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from slap_fast.cli import main
from slap_fast.data.format.dataset_files import DatasetError, locked_for_writing
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare import Part, merge, prepare
from slap_fast.data.prepare.parts import SourceItems
from slap_fast.data.prepare.source_detection import open_source
from tests.data.builders import encode, write_tar

_ARGUMENTS: dict[str, Any] = {"workers": 0, "vocab_size": 300, "max_shard_bytes": 30_000, "progress": False}


def _pcm(number: int) -> np.ndarray:
    generator = np.random.default_rng(number)
    return (generator.standard_normal(1600 + 160 * number) * 3000).astype(np.int16)


def _table(folder: Path) -> Path:
    """Clips of which some are unusable, some share a key, and some rows share a clip."""
    rows = []
    for number in range(20):
        for extension in ("wav", "flac") if number % 4 == 0 else ("wav",):
            if number % 5 != 3:
                soundfile.write(folder / f"{number}.{extension}", _pcm(number), 16_000)
            for caption in range(1 + number % 2):
                rows.append({"file": f"{number}.{extension}", "caption": f"caption {caption} of sound {number}"})
    (folder / "table.json").write_text(json.dumps(rows))
    return folder / "table.json"


def _folder(folder: Path) -> Path:
    for name in ("a", "a b", "c", "d", "d/e", "f"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).mkdir(exist_ok=True)
        soundfile.write(folder / name / "x.wav", _pcm(len(name)), 16_000)
        (folder / name / "x.txt").write_text(f"the sound of {name}")
    (folder / "note.md").write_text("no audio")
    return folder


def _tars(folder: Path) -> Path:
    for tar in range(3):
        clips = {f"{clip}.wav": encode(_pcm(10 * tar + clip), format="WAV") for clip in range(6)}
        texts = {f"{clip}.txt": f"sound {clip} of tar {tar}".encode() for clip in range(6) if clip != 4}
        write_tar(folder / f"{tar}.tar", dict(sorted((clips | texts).items())))
    return folder


def _content(folder: Path) -> dict[str, Any]:
    """Everything of a dataset but its borders between shards."""
    index = ClipIndex.open(folder)
    clips = range(len(index))
    info = {name: value for name, value in index.info.items() if name not in ("shards", "seconds")}
    return {
        "clips": [(index.key(clip), bytes(index.read_audio(clip)), index.read_metadata(clip)) for clip in clips],
        "durations": index.durations.tolist(),
        "info": info,
        "seconds": pytest.approx(index.info["seconds"]),
        "report": (folder / "report.jsonl").read_bytes(),
        "tokenizer": {path.name: path.read_bytes() for path in (folder / "tokenizer").iterdir()},
    }


@pytest.mark.parametrize(("build", "parts"), [(_table, 1), (_table, 3), (_folder, 3), (_tars, 3), (_tars, 20)])
def test_merged_parts_equal_the_dataset_of_one_machine(
    tmp_path: Path, build: Callable[[Path], Path], parts: int
) -> None:
    (tmp_path / "in").mkdir()
    source = build(tmp_path / "in")
    whole = prepare(source, tmp_path / "whole", **_ARGUMENTS)
    folders = [tmp_path / f"part{number}" for number in range(1, parts + 1)]
    for number, folder in enumerate(folders, 1):
        report = prepare(source, folder, part=Part(number, parts), **_ARGUMENTS)
        assert report.part == f"{number}/{parts}"
        assert report.seen == report.clips + report.merged + sum(report.rejected.values())
    merged = merge(folders[::-1], tmp_path / "merged", progress=False)
    assert _content(tmp_path / "merged") == _content(tmp_path / "whole")
    counts = dataclasses.asdict(whole) | {"folder": merged.folder, "shards": merged.shards}
    assert dataclasses.asdict(merged) == counts | {"seconds": pytest.approx(whole.seconds)}
    if build is _table:
        assert whole.noted == {"renamed": 4}
    # Linked, so the parts can go. The command of one machine, too, finds its dataset complete.
    assert all(tar.stat().st_nlink == 2 for tar in (tmp_path / "merged").glob("*.tar"))
    for folder in folders:
        shutil.rmtree(folder)
    assert _content(tmp_path / "merged") == _content(tmp_path / "whole")
    assert prepare(source, tmp_path / "merged", **_ARGUMENTS).already_complete


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    (tmp_path / "in").mkdir()
    source = _table(tmp_path / "in")
    folders = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(folders, 1):
        prepare(source, folder, part=Part(number, 3), **_ARGUMENTS)
    return folders


def test_an_interrupted_part_continues_to_the_same_bytes(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(tmp_path / "in" / "table.json")
    iterate = SourceItems.__iter__

    def stopped(self: SourceItems) -> Iterator[Any]:
        for number, item in enumerate(iterate(self)):
            if number == 7:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(SourceItems, "__iter__", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "again", part=Part(2, 3), **_ARGUMENTS)
    monkeypatch.undo()
    assert list((tmp_path / "again").glob("*.tar"))
    with pytest.raises(DatasetError, match="an unfinished part; run its command again"):
        merge([parts[0], tmp_path / "again", parts[2]], tmp_path / "merged", progress=False)
    with pytest.raises(DatasetError, match="--part: '2/3' then, '1/3' now"):
        prepare(source, tmp_path / "again", part=Part(1, 3), **_ARGUMENTS)
    with locked_for_writing(tmp_path / "again"), pytest.raises(DatasetError, match="another `slap-fast prepare`"):
        prepare(source, tmp_path / "again", part=Part(2, 3), **_ARGUMENTS)
    prepare(source, tmp_path / "again", part=Part(2, 3), **_ARGUMENTS)
    names = sorted(path.name for path in parts[1].iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    assert all((parts[1] / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_parts_that_do_not_make_one_dataset_are_refused_by_name(tmp_path: Path, parts: list[Path]) -> None:
    source, out = tmp_path / "in" / "table.json", tmp_path / "merged"
    first, second, third = parts

    def refused(given: list[Path], message: str) -> None:
        with pytest.raises(DatasetError, match=message):
            merge(given, out, progress=False)
        assert not out.exists() or not list(out.glob("*.tar"))

    refused([first, third], "1 of 3 parts are missing: 2")
    refused([first, second, third, second], r"part2: part 2/3, as .*part2; give each part once")
    prepare(source, tmp_path / "whole", **_ARGUMENTS)
    refused([first, second, tmp_path / "whole"], "whole: a whole dataset, not a part")
    refused([first, second, tmp_path / "in"], "in: no part, it has no part.json")
    refused([], "give the folders of all parts")
    prepare(source, tmp_path / "four", part=Part(3, 4), **_ARGUMENTS)
    refused([first, second, tmp_path / "four"], "four: not of the same run as .*part1: other number of parts")
    prepare(source, tmp_path / "other", part=Part(3, 3), **(_ARGUMENTS | {"max_duration": 9.0}))
    refused([first, second, tmp_path / "other"], "--max-duration: None in .*part1, 9.0 in .*other")
    rows = json.loads(source.read_text())
    (tmp_path / "in" / "19.wav").unlink()
    source.write_text(json.dumps([*rows[:-1], rows[-1] | {"caption": "another"}]))
    prepare(source, tmp_path / "changed", part=Part(3, 3), **_ARGUMENTS)
    refused([first, second, tmp_path / "changed"], "changed: not of the same run as .*SHA-256")
    sounds = _folder(tmp_path / "sounds")
    for number in (1, 2):
        prepare(sounds, tmp_path / f"sounds{number}", part=Part(number, 2), **_ARGUMENTS)
        (sounds / "a" / "x.txt").write_text("another caption")
    refused([tmp_path / "sounds1", tmp_path / "sounds2"], "sounds2: not of the same run as .*content of the source")
    info = json.loads((third / "part.json").read_text())
    (third / "part.json").write_text(json.dumps(info | {"readers": info["readers"] | {"ffmpeg": "not installed"}}))
    refused(parts, "part3: not of the same run as .*part1: other versions of the decoders .*ffmpeg.*'not installed' in")
    (third / "part.json").write_text("{")
    refused(parts, "part.json: damaged")
    (third / "part.json").write_text(json.dumps(info))
    tar = next(third.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    refused(parts, r"part3/shard-\d+.tar: \d+ bytes, instead of \d+ bytes; restore it")
    tar.write_bytes(tar.read_bytes() + bytes(512))
    with pytest.raises(DatasetError, match="part1: is one of the parts"):
        merge(parts, first, progress=False)
    with pytest.raises(DatasetError, match="part1: a part of a dataset; join all parts"):
        ClipIndex.open(first)


def test_an_interrupted_merge_continues_and_another_folder_is_left_alone(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "merged"
    link = os.link
    done: list[None] = []

    def fail(source: Any, target: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(link(source, target))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(KeyboardInterrupt):
        merge(parts, out, progress=False)
    for name, size in (("shard-000000.tar", next(parts[0].glob("*0.tar")).stat().st_size), ("shard-000001.tar", 9)):
        (out / name).unlink()
        (out / name).write_bytes(bytes(size))

    def elsewhere(source: Any, target: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", elsewhere)
    report = merge(parts, out, progress=False)
    assert f"{report.shards} of {report.shards} shards were copied, not linked" in caplog.text
    monkeypatch.undo()
    merge(parts, tmp_path / "linked", progress=False)
    assert _content(out) == _content(tmp_path / "linked")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.tar").write_bytes(b"mine")
    with pytest.raises(DatasetError, match="mine: contains tars, an index or a part; choose an empty folder"):
        merge(parts, tmp_path / "mine", progress=False)


def test_the_command_counts_parts_from_one(
    tmp_path: Path, parts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tmp_path / "in" / "table.json")
    for part, message in (
        ("0/3", "--part 0/3: parts are numbered from 1; for Slurm, use --array=1-3"),
        ("4/3", "--part 4/3: there are 3 parts"),
        ("3", "--part '3' is not N/M, such as 3/16"),
        ("/3", "is not N/M"),
    ):
        assert main(["prepare", source, "--out", str(tmp_path / "x"), "--part", part]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    out = str(tmp_path / "merged")
    assert main(["prepare", "--merge", *map(str, parts), "--out", out, "--max-duration", "3"]) == 2
    assert "--max-duration: not used with --merge" in capsys.readouterr().err
    assert main(["prepare", "--merge", *map(str, parts), "--out", out, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == len(ClipIndex.open(out))
