"""Published datasets, as unpacked from their archives and as Parquet from the hub: each clip gets the right audio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.labeled_layouts import LabeledTable
from slap_fast.data.prepare.layouts import AudioCaps, Clotho
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import BytesAudio, ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.source_detection import open_source
from slap_fast.data.prepare.wavcaps import WavCaps


def _files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _clips(source: Any, root: Path) -> dict[str, tuple[list[str], str]]:
    """Captions and audio file of each clip, by its name."""
    items = list(source)
    assert source.count() == len(items)
    return {
        item.name: (list(item.captions), str(item.audio.path.resolve().relative_to(root)))
        for item in items
        if isinstance(item, ClipItem) and isinstance(item.audio, FileAudio)
    }


def _wavcaps(folder: Path, subset: str, name: str, ids: dict[str, str]) -> Path:
    (folder / subset).mkdir(parents=True, exist_ok=True)
    rows = [{"id": id, "caption": text, "audio": "wav_path", "duration": 1.0} for id, text in ids.items()]
    path = folder / subset / name
    path.write_text(json.dumps({"num_captions_per_audio": 1, "data": rows}))
    return path


def test_wavcaps_uses_the_audio_of_the_right_subset(tmp_path: Path) -> None:
    jsons = tmp_path / "json_files"
    sound_bible = _wavcaps(jsons, "SoundBible", "sb_final.json", {"2219": "bible", "7": "seven"})
    _wavcaps(jsons, "FreeSound", "fsd_final.json", {"2219": "freesound", "3": "three"})
    _wavcaps(jsons, "FreeSound", "fsd_final_2s.json", {"2219": "freesound"})
    _wavcaps(jsons, "BBC_Sound_Effects", "bbc_final.json", {"NHU05": "waves"})
    _wavcaps(jsons, "blacklist", "blacklist_exclude_all.json", {"2219": "no"})
    # As the zips unpack.
    _files(tmp_path, "x/FreeSound_flac/2219.flac", "x/SoundBible_flac/2219.flac", "x/FreeSound_flac/7.flac")
    _files(tmp_path, "x/mnt/BBC_Sound_Effects_flac/NHU05.flac", "x/FreeSound_flac/3.flac")
    expected = {
        "BBC_Sound_Effects/NHU05": (["waves"], "x/mnt/BBC_Sound_Effects_flac/NHU05.flac"),
        "FreeSound/2219": (["freesound"], "x/FreeSound_flac/2219.flac"),
        "FreeSound/3": (["three"], "x/FreeSound_flac/3.flac"),
        "SoundBible/2219": (["bible"], "x/SoundBible_flac/2219.flac"),
        # Not FreeSound's clip with the same id.
        "SoundBible/7": (["seven"], "x/SoundBible/7.flac"),
    }
    for given in (tmp_path, jsons):
        source = open_source(given, audio_root=tmp_path / "x")
        assert isinstance(source, WavCaps)
        assert _clips(source, tmp_path) == expected
    one = _clips(open_source(sound_bible, audio_root=tmp_path / "x"), tmp_path)
    assert one == {"2219": expected["SoundBible/2219"], "7": expected["SoundBible/7"]}
    other = _clips(open_source(sound_bible, audio_root=tmp_path / "x/FreeSound_flac"), tmp_path)
    assert all("SoundBible/" in file for _, file in other.values())


def test_wavcaps_rejects_audio_that_could_be_of_several_subsets(tmp_path: Path) -> None:
    jsons = tmp_path / "json_files"
    _wavcaps(jsons, "SoundBible", "sb_final.json", {"1": "bible", "2": "only bible"})
    _wavcaps(jsons, "FreeSound", "fsd_final.json", {"1": "freesound", "4": "twice"})
    _files(tmp_path, "x/1.flac", "x/2.flac", "x/a/4.flac", "x/b/4.flac")
    source = open_source(jsons, audio_root=tmp_path / "x")
    assert _clips(source, tmp_path) == {"SoundBible/2": (["only bible"], "x/2.flac")}
    rejected = [item for item in source if isinstance(item, Rejection)]
    assert [item.reason for item in rejected] == ["ambiguous_audio"] * 3
    assert [item.detail.partition(";")[0] for item in rejected] == [
        "1.flac could be of FreeSound or SoundBible",
        "a/4.flac, b/4.flac could each be FreeSound/4",
        "1.flac could be of FreeSound or SoundBible",
    ]


def test_wavcaps_without_its_folders(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps([{"id": 0, "caption": "zero", "audio": "wav_path"}]))
    _files(tmp_path, "FreeSound_flac/0.flac")
    source = open_source(tmp_path / "mine.json")
    assert isinstance(source, WavCaps)
    assert _clips(source, tmp_path) == {"0": (["zero"], "FreeSound_flac/0.flac")}
    other = _wavcaps(tmp_path, "SoundBible", "sb_final.json", {"1": "one"})
    with pytest.raises(DatasetError, match="--layout wavcaps takes one SOURCE, the folder of its JSONs"):
        open_source([tmp_path / "mine.json", other])
    # A table with audio paths is a manifest.
    (tmp_path / "own.json").write_text(json.dumps([{"id": 0, "caption": "zero", "audio": "a.wav"}]))
    assert isinstance(open_source(tmp_path / "own.json"), Manifest)


def test_audiocaps_from_the_hub(tmp_path: Path) -> None:
    rows = [
        {
            "audiocap_id": 10 * clip + row,
            "youtube_id": f"{'ab'[clip]}0000000000",
            "start_time": 30,
            "caption": f"caption {clip} {row}",
            "audio": {"bytes": b"RIFF%d" % clip, "path": f"{10 * clip + row}.wav"},
        }
        for clip in range(2)
        for row in range(5)
    ]
    for shard in range(2):
        path = tmp_path / f"data/test-{shard:05d}-of-00002-0123456789abcdef.parquet"
        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[shard::2]), path)
    source = open_source(tmp_path)
    assert isinstance(source, AudioCaps)
    items = list(source)
    assert {
        item.name: (item.audio, sorted(item.captions), item.seen) for item in items if isinstance(item, ClipItem)
    } == {
        f"{'ab'[clip]}0000000000_30": (BytesAudio(b"RIFF%d" % clip), [f"caption {clip} {row}" for row in range(5)], 5)
        for clip in range(2)
    }


CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"


@pytest.mark.parametrize(
    ("table", "audio"),
    [
        ("clotho_captions_evaluation.csv", "evaluation"),
        ("csv/clotho_captions_evaluation.csv", "evaluation"),
        ("clotho_csv_files/clotho_captions_evaluation.csv", "clotho_audio_files/evaluation"),
        ("clotho_captions_evaluation.csv", "."),
    ],
)
def test_clotho_is_detected_by_its_columns(tmp_path: Path, table: str, audio: str) -> None:
    _files(tmp_path, table, f"{audio}/Garden (1).wav")
    # The same name in another split is another clip.
    if audio != ".":
        _files(tmp_path, f"{audio}/../development/Garden (1).wav", f"{audio}/../development/gone.wav")
    (tmp_path / table).write_text(CLOTHO + "Garden (1).wav,1,2,3,4,5\ngone.wav,1,2,3,4,5\n")
    source = open_source(tmp_path / table)
    assert isinstance(source, Clotho)
    assert _clips(source, tmp_path.resolve()) == {
        "Garden (1)": (list("12345"), str(Path(audio, "Garden (1).wav"))),
        "gone": (list("12345"), str(Path(audio, "gone.wav"))),
    }
    if audio != ".":
        below = open_source(tmp_path / table, audio_root=(tmp_path / audio).parent)
        assert _clips(below, tmp_path.resolve())["Garden (1)"][1] == str(Path(audio, "Garden (1).wav"))


def test_clotho_from_the_hub_with_audio_in_the_table(tmp_path: Path) -> None:
    row: dict[str, Any] = {"file_name": "a.wav", **{f"caption_{n}": f"{n}" for n in range(1, 6)}}
    row["audio"] = {"bytes": b"RIFF", "path": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "test.parquet")
    (item,) = open_source(tmp_path / "test.parquet")
    assert isinstance(item, ClipItem)
    assert (item.audio, list(item.captions), item.metadata) == (
        BytesAudio(b"RIFF"),
        list("12345"),
        {"file_name": "a.wav"},
    )


ESC50 = (
    "filename,fold,target,category,esc10,src_file,take\n"
    "1-1-A-0.wav,1,0,dog,True,1,A\n1-2-A-9.wav,2,9,sea_waves,False,2,A\n"
)
URBANSOUND8K = (
    "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    "1-3-0-0.wav,1,0,4,1,5,3,dog_bark\n1-3-0-1.wav,1,4,8,1,10,3,dog_bark\n"
)


@pytest.mark.parametrize(
    ("table", "content", "expected"),
    [
        ("meta/esc50.csv", ESC50,
         {"1-1-A-0": ("the sound of dog", "audio/1-1-A-0.wav"),
          "1-2-A-9": ("the sound of sea waves", "audio/1-2-A-9.wav")}),
        ("metadata/UrbanSound8K.csv", URBANSOUND8K,
         {"1-3-0-0": ("the sound of dog bark", "audio/fold5/1-3-0-0.wav"),
          "1-3-0-1": ("the sound of dog bark", "audio/fold10/1-3-0-1.wav")}),
    ],
)  # fmt: skip
def test_classification_datasets_are_captioned_with_their_classes(
    tmp_path: Path, table: str, content: str, expected: dict[str, tuple[str, str]]
) -> None:
    _files(tmp_path, table, *(file for _, file in expected.values()))
    (tmp_path / table).write_text(content)
    clips = {name: ([caption], file) for name, (caption, file) in expected.items()}
    for source in (
        open_source(tmp_path),
        open_source(tmp_path / table),
        open_source(tmp_path / table, audio_root=tmp_path / "audio"),
    ):
        assert isinstance(source, LabeledTable)
        assert _clips(source, tmp_path.resolve()) == clips
    with pytest.raises(DatasetError, match="AudioCaps needs the columns"):
        open_source(tmp_path / table, layout="audiocaps")


def test_esc50_from_the_hub_with_audio_in_the_table(tmp_path: Path) -> None:
    row = {
        "filename": "1.wav",
        "fold": 1,
        "target": 0,
        "category": "sea_waves",
        "audio": {"bytes": b"RIFF", "path": None},
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train-00000-of-00001-0abc.parquet")
    (item,) = open_source(tmp_path)
    assert isinstance(item, ClipItem)
    assert (item.audio, list(item.captions)) == (BytesAudio(b"RIFF"), ["the sound of sea waves"])
    assert item.metadata == {
        "filename": "1.wav",
        "fold": 1,
        "target": 0,
        "category": "sea_waves",
        "caption_source": "template",
    }
