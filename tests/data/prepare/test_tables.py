"""Strict reading of tables: a clip gets exactly the content of its row, or the row is reported."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.audio.errors import AudioError
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare import prepare
from slap_fast.data.prepare.segments import Segment, SegmentSound
from slap_fast.data.prepare.source import BytesAudio, ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.source_detection import open_source
from tests.data.fuzzing import corruptions


def _items(source: Any) -> list[ClipItem | Rejection]:
    items = list(source)
    assert source.count() in (None, len(items))
    assert source.seen == sum(item.seen for item in items)
    return items


def _clips(source: Any) -> dict[str, list[str]]:
    return {item.name: list(item.captions) for item in _items(source) if isinstance(item, ClipItem)}


def _rejected(source: Any) -> dict[str, str]:
    return {item.origin: item.detail for item in _items(source) if isinstance(item, Rejection)}


UNCLOSED = "a cell starts with a quote that is not closed"
INSIDE = "a quote inside a quoted cell"


@pytest.mark.parametrize(
    ("name", "rows", "clips", "rejected"),
    [
        # A .tsv without quoting.
        ("m.tsv", ['a.wav\t"Oh no, he said', "b.wav\ta dog barks", "c.wav\ta cat meows"],
         {"a": ['"Oh no, he said'], "b": ["a dog barks"], "c": ["a cat meows"]}, {}),
        ("m.tsv", ['a.wav\t"Oh no', 'b.wav\t"a dog" barks', 'c.wav\tthe end"'],
         {"a": ['"Oh no'], "b": ['"a dog" barks'], "c": ['the end"']}, {}),
        ("m.tsv", ["a.wav\tone", 'b.wav\t"the last'], {"a": ["one"], "b": ['"the last']}, {}),
        # A closing quote in a later row: the rows in between are separate rows.
        ("m.csv", ['a.wav,"Oh no', 'b.wav,a dog"', "c.wav,a cat"], {"b": ['a dog"'], "c": ["a cat"]},
         {"m.csv:2": UNCLOSED}),
        ("m.csv", ['a.wav,"Oh no', "b.wav,a dog", 'c.wav,"a cat"'], {"b": ["a dog"], "c": ["a cat"]},
         {"m.csv:2": UNCLOSED}),
        ("m.csv", ["a.wav,one", 'b.wav,"the last'], {"a": ["one"]}, {"m.csv:3": UNCLOSED}),
        ("m.csv", ['a.wav,"he said "hi" and left"', "b.wav,fine"], {"b": ["fine"]}, {"m.csv:2": INSIDE}),
        # Correct quoting.
        ("m.csv", ['a.wav,"two', 'lines, of one"', 'b.wav,"a ""dog"""'],
         {"a": ["two lines, of one"], "b": ['a "dog"']}, {}),
        ("m.tsv", ['a.wav\t"a\tdog"', 'b.wav\t5" pipe'], {"a": ["a dog"], "b": ['5" pipe']}, {}),
        # Other delimiters than the extension suggests.
        ("m.csv", ["a.wav;one, two"], {"a": ["one, two"]}, {}),
        ("m.csv", ["a.wav\tone, two"], {"a": ["one, two"]}, {}),
        ("m.csv", ['a.wav, "one, two"', ' b.wav , three'], {"a": ["one, two"], "b": ["three"]}, {}),
        # Missing values and lists, as programs write them.
        ("m.csv", ["a.wav,nan", "b.wav,None", "c.wav,NULL", "d.wav,Nancy"],
         {"a": [], "b": [], "c": [], "d": ["Nancy"]}, {}),
        ("m.csv",
         ["a.wav,\"['a' 'b']\"", "b.wav,\"['a', None]\"", 'c.wav,"[""it\'s"" \'b\']"', "d.wav,\"['a'", " 'b']\""],
         {"a": ["a", "b"], "b": ["a"], "c": ["it's", "b"], "d": ["a", "b"]}, {}),
    ],
)  # fmt: skip
def test_a_misquoted_row_does_not_affect_other_rows(
    tmp_path: Path, name: str, rows: list[str], clips: dict[str, list[str]], rejected: dict[str, str]
) -> None:
    delimiter = next(mark for mark in "\t;," if mark in rows[0])
    space = " " if ", " in rows[0] and name == "m.csv" and delimiter == "," else ""
    (tmp_path / "b.wav").touch()
    (tmp_path / name).write_text("\n".join([f"path{delimiter}{space}caption", *rows]) + "\n")
    source = open_source(tmp_path / name)
    assert _clips(source) == clips
    found = _rejected(source)
    assert list(found) == list(rejected)
    assert all(found[origin].startswith(rejected[origin]) for origin in rejected)


_FRAGMENTS = st.lists(st.sampled_from(['"', '""', ",", "\t", " ", "a", "b.wav", "\r", "[", "'"]), max_size=8).map(
    "".join
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.one_of(st.none(), _FRAGMENTS), max_size=12), extension=st.sampled_from([".csv", ".tsv"]))
def test_random_misquoted_rows_do_not_swallow_good_ones(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | None], extension: str
) -> None:
    # None stands for a good row: no quote, two cells, an audio file.
    table = tmp_path_factory.mktemp("m") / f"m{extension}"
    delimiter = "\t" if extension == ".tsv" else ","
    good = {f"{n}": f"caption {n}" for n, row in enumerate(rows) if row is None}
    lines = [f"{n}.wav{delimiter}caption {n}" if row is None else row for n, row in enumerate(rows)]
    table.write_text("\n".join([f"path{delimiter}caption", "first.wav" + delimiter + "x", *lines]) + "\n", newline="")
    clips = _clips(open_source(table))
    assert {name: clips.get(name) for name in good} == {name: [caption] for name, caption in good.items()}


def _outcome(table: Path) -> str:
    """The error of a table, or an empty string."""
    try:
        _items(open_source(table))
    except DatasetError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_damaged_tables_are_read_or_raise_dataset_error(tmp_path: Path, extension: str) -> None:
    rows = [{"audio": f"{n}.wav", "captions": [f"caption {n}", None], "x": 1.5} for n in range(9)]
    whole = tmp_path / f"whole{extension}"
    if extension == ".parquet":
        _parquet(whole, rows)
    elif extension in (".csv", ".tsv"):
        mark = "\t" if extension == ".tsv" else ","
        whole.write_text(
            "\n".join([mark.join(rows[0]), *(mark.join(f'"{cell}"' for cell in row.values()) for row in rows)])
        )
    else:
        lines = [json.dumps(row) for row in rows]
        whole.write_text("\n".join(lines) if extension == ".jsonl" else f"[{','.join(lines)}]")
    generator = np.random.default_rng(0)
    damaged = tmp_path / f"m{extension}"
    outcomes = []
    for blob in (blob for _ in range(25) for blob in corruptions(whole.read_bytes(), generator)):
        damaged.write_bytes(blob)
        outcomes.append(_outcome(damaged))
    assert "" in outcomes
    assert any(outcomes)
    assert not any("\n" in outcome for outcome in outcomes)


def test_utf16_of_spreadsheets_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path\tcaption\na.wav\tcafé\n", encoding="utf-16")
    assert _clips(open_source(tmp_path / "m.csv")) == {"a": ["café"]}


def test_duplicate_column_names_and_keys_are_errors(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,caption,caption\na.wav,one,two\n")
    with pytest.raises(DatasetError, match="more than one column is named 'caption'; its columns are path, caption"):
        open_source(tmp_path / "m.csv")
    (tmp_path / "blank.csv").write_text("path,caption,,\na.wav,one,,x\n")
    (item,) = _items(open_source(tmp_path / "blank.csv"))
    assert isinstance(item, ClipItem)
    assert item.metadata == {"column 3": "", "column 4": "x"}
    schema = pyarrow.schema([("path", pyarrow.string()), ("caption", pyarrow.string()), ("caption", pyarrow.string())])
    table = pyarrow.Table.from_arrays([pyarrow.array(["a.wav"])] * 3, schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(DatasetError, match="more than one column is named 'caption'"):
        open_source(tmp_path / "m.parquet")
    (tmp_path / "m.jsonl").write_text(
        '{"path": "a.wav", "caption": "one"}\n{"path": "b.wav", "caption": "one", "caption": "two"}\n'
    )
    source = open_source(tmp_path / "m.jsonl")
    assert _clips(source) == {"a": ["one"]}
    assert _rejected(source) == {"m.jsonl:2": "the key 'caption' appears twice"}
    (tmp_path / "m.json").write_text('{"data": [], "data": [{"path": "a.wav", "caption": "one"}]}')
    with pytest.raises(DatasetError, match="the key 'data' appears twice"):
        open_source(tmp_path / "m.json")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.wav").touch()
    (tmp_path / "folder/a.json").write_text('{"caption": "one", "caption": "two"}')
    assert _rejected(open_source(tmp_path / "folder")) == {
        "a.wav": "a.json is malformed (the key 'caption' appears twice)"
    }


def test_messages_name_the_flags_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("sound,words\na.wav,one\n")
    with pytest.raises(DatasetError, match="give it with --audio-column"):
        open_source(tmp_path / "m.csv")
    with pytest.raises(DatasetError, match="give it with --caption-columns"):
        open_source(tmp_path / "m.csv", audio_column="sound")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.wav").touch()
    (tmp_path / "a/x.txt").write_text("one")
    with pytest.raises(DatasetError, match="--audio-dir is for a table of audio paths, not a folder of audio"):
        open_source(tmp_path / "a", audio_root=tmp_path)
    with pytest.raises(DatasetError, match="--audio-column and --caption-columns are for a manifest, not a folder"):
        open_source(tmp_path / "a", audio_column="sound")
    with pytest.raises(DatasetError, match="is a table; --layout folder needs a folder"):
        open_source(tmp_path / "m.csv", layout="folder")
    with pytest.raises(DatasetError, match=r"matches no file"):
        open_source(tmp_path / "*.parquet")
    with pytest.raises(DatasetError, match=r"several sources are several tables, or several \.tar files"):
        open_source([tmp_path / "m.csv", tmp_path / "a"])


def _wav(hz: float, seconds: float = 0.3, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate), rate, format="WAV")
    return file.getvalue()


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("path", [None, "audio.wav", "abc.wav"])
def test_audio_in_parquet_is_identified_by_its_content(tmp_path: Path, path: str | None) -> None:
    # Five rows of each of two clips.
    rows = [
        {"audio": {"bytes": _wav(440 * (1 + clip)), "path": path}, "caption": f"caption {clip} {row}"}
        for row in range(5)
        for clip in range(2)
    ]
    source = open_source(_parquet(tmp_path / "train-00000-of-00001.parquet", rows))
    items = [item for item in _items(source) if isinstance(item, ClipItem)]
    assert [item.captions for item in items] == [[f"caption {clip} {row}" for row in range(5)] for clip in range(2)]
    assert [item.audio for item in items] == [BytesAudio(_wav(440)), BytesAudio(_wav(880))]
    assert [item.seen for item in items] == [5, 5]


def test_equal_bytes_with_different_paths_are_different_clips(tmp_path: Path) -> None:
    rows = [{"audio": {"bytes": _wav(440), "path": f"{n}.wav"}, "caption": f"caption {n}"} for n in range(2)]
    assert _clips(open_source(_parquet(tmp_path / "m.parquet", rows))) == {"0": ["caption 0"], "1": ["caption 1"]}


def test_decoded_samples_in_a_table_are_rejected(tmp_path: Path) -> None:
    rows = [{"audio": {"array": [0.0, 0.1], "sampling_rate": 16_000}, "caption": "a"}]
    (detail,) = _rejected(open_source(_parquet(tmp_path / "m.parquet", rows))).values()
    assert "decoded samples" in detail


def test_parquet_shards_are_one_dataset_as_a_folder_a_pattern_or_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "hub/data"
    shards = [
        _parquet(
            folder / f"train-{n:05d}-of-00003.parquet",
            [{"audio": {"bytes": _wav(300 * (n + 1)), "path": f"{n}.wav"}, "text": f"caption {n}"}],
        )
        for n in range(3)
    ]
    expected = {f"{n}": [f"caption {n}"] for n in range(3)}
    for source in (folder, tmp_path / "hub", folder / "train-*.parquet", shards):
        assert _clips(open_source(source)) == expected
    shards[1].unlink()
    incomplete = open_source(folder)
    assert _rejected(incomplete) == {
        "train-*-of-00003.parquet": "1 of 3 shards are missing: 00001; download them if needed"
    }
    assert len(_clips(incomplete)) == 2
    # Given one by one, nothing is missing.
    assert _rejected(open_source(shards[::2])) == {}
    _parquet(folder / "test-00000-of-00001.parquet", [{"audio": "x.wav", "text": "x"}])
    with pytest.raises(DatasetError, match=r"contains the splits 'test', 'train'; prepare each .*/test-\*.parquet"):
        open_source(folder)


def test_shards_with_equal_names_in_several_folders(tmp_path: Path) -> None:
    # As Hugging Face converts every dataset.
    for part in ("a", "b"):
        _parquet(tmp_path / part / "0000.parquet", [{"audio": {"bytes": _wav(440), "path": None}, "text": part}])
    (item,) = _items(open_source(tmp_path))
    assert isinstance(item, ClipItem)
    assert (item.captions, item.origin) == (["a", "b"], "a/0000.parquet[0] (a/0000.parquet[0])")
    for part in ("default/train", "default/test"):
        _parquet(tmp_path / part / "0000.parquet", [{"audio": "a.wav", "text": part}])
    with pytest.raises(DatasetError, match="contains the splits '', 'test', 'train'"):
        open_source(tmp_path)


@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".parquet"])
def test_audio_folder_of_hugging_face(tmp_path: Path, extension: str) -> None:
    for name in ("a.wav", "deep/b.wav", "c.wav", "d.wav"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).touch()
    (tmp_path / "f/c.txt").write_text("a cat meows")
    (tmp_path / "f/a.txt").write_text("not this")
    rows = [{"file_name": "a.wav", "caption": "a dog barks"}, {"file_name": "deep/b.wav", "caption": "rain"}]
    table = tmp_path / f"f/metadata{extension}"
    if extension == ".parquet":
        _parquet(table, rows)
    elif extension == ".jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    else:
        table.write_text("\n".join(["file_name,caption", *(",".join(row.values()) for row in rows)]))
    source = open_source(tmp_path / "f")
    clips = [item for item in source if isinstance(item, ClipItem)]
    assert {item.name: item.captions for item in clips} == {
        "a": ["a dog barks"],
        "deep/b": ["rain"],
        "c": ["a cat meows"],
    }
    assert [item.audio for item in clips] == [
        FileAudio(tmp_path / "f" / name) for name in ("a.wav", "deep/b.wav", "c.wav")
    ]
    rejected = {item.origin: item for item in source if isinstance(item, Rejection)}
    assert {origin: item.reason for origin, item in rejected.items()} == {
        "a.*": "unused_sidecar",
        "d.wav": "no_captions",
    }
    assert source.seen == sum(item.seen for item in source) == 6
    assert f"metadata{extension} has no row" in rejected["d.wav"].detail


def test_audio_folders_of_several_splits_are_an_error(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.wav").touch()
        (tmp_path / split / "metadata.csv").write_text("file_name,caption\na.wav,x\n")
    with pytest.raises(DatasetError, match="contains the splits 'test', 'train'"):
        open_source(tmp_path)
    assert _clips(open_source(tmp_path / "train")) == {"a": ["x"]}


def test_a_table_beside_audio_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "captions.csv").write_text("path,caption\na.wav,x\n")
    with pytest.raises(DatasetError, match=r"no .txt or .json beside it; to read a table, .*captions.csv"):
        open_source(tmp_path)


def test_a_linked_table_reads_the_audio_beside_the_link(tmp_path: Path) -> None:
    # Like the Hugging Face cache: the table and the audio are links into a folder of blobs.
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blobs/1").write_text("file_name,caption\na.wav,x\n")
    (tmp_path / "blobs/2").write_bytes(_wav(440))
    os.symlink(tmp_path / "blobs/1", tmp_path / "snapshot/m.csv")
    os.symlink(tmp_path / "blobs/2", tmp_path / "snapshot/a.wav")
    (item,) = _items(open_source(tmp_path / "snapshot/m.csv"))
    assert isinstance(item, ClipItem)
    assert item.audio == FileAudio(tmp_path / "snapshot/a.wav")


def _content(folder: Path) -> dict[str, tuple[float, float]]:
    """Seconds and the loudest frequency in Hz of each clip, by its captions."""
    index = ClipIndex.open(folder)
    found = {}
    for clip in range(len(index)):
        samples, rate = soundfile.read(io.BytesIO(index.read_audio(clip)))
        hz = float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))
        found[" ".join(index.read_metadata(clip)["captions"])] = (len(samples) / rate, round(hz, -1))
    return found


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_rows_with_offset_and_duration_are_segments(tmp_path: Path, rate: int) -> None:
    # One second of each of three tones.
    time = np.arange(rate) / rate
    tones = np.concatenate([0.5 * np.sin(2 * np.pi * hz * time) for hz in (400, 800, 1200)])
    soundfile.write(tmp_path / "long.wav", tones, rate)
    rows: list[dict[str, Any]] = [
        {"offset": 0, "duration": 0.5, "text": "first"},
        {"offset": 0.5, "duration": 0.5, "text": "second"},
        {"offset": "1.0", "duration": 1.0, "text": "third"},
        {"offset": 1.0, "duration": 1.0, "text": "again"},
        {"offset": 2.25, "text": "rest"},
        {"offset": None, "duration": 3.0, "text": "whole"},
        {"offset": 2.5, "duration": 1.0, "text": "too long"},
        {"offset": 3.0, "duration": 1.0, "text": "beyond"},
        {"offset": -1, "duration": 1.0, "text": "negative"},
        {"offset": 0, "duration": "long", "text": "no number"},
    ]
    table = tmp_path / "m.jsonl"
    table.write_text("\n".join(json.dumps({"audio_filepath": "long.wav", **row}) for row in rows))
    report = prepare(table, tmp_path / "out", workers=0, progress=False)
    assert _content(tmp_path / "out") == {
        "first": (0.5, 400),
        "second": (0.5, 400),
        "third again": (1.0, 800),
        "rest": (0.75, 1200),
        "whole": (3.0, pytest.approx(800, abs=400)),
    }
    assert report.rejected == {"truncated": 1, "no_samples": 1, "malformed_row": 2}


class _Sound:
    """Samples 0, 1, 2... in blocks of 7."""

    samplerate, channels, declared_seconds = 10, 1, None

    def __init__(self, samples: int) -> None:
        self.notes: list[tuple[str, str]] = []
        self.samples = np.arange(samples, dtype=np.float32)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self.samples), 7):
            yield self.samplerate, self.samples[start : start + 7]


@given(start=st.integers(0, 60), length=st.none() | st.integers(1, 60))
def test_a_segment_has_exactly_its_samples(start: int, length: int | None) -> None:
    sound = _Sound(50)
    segment = SegmentSound(sound, Segment(start / 10, None if length is None else length / 10))
    expected = sound.samples[start : None if length is None else start + length]
    if start >= 50 or (length is not None and start + length > 50):
        with pytest.raises(AudioError, match=r"the row needs .*, the recording lasts 5.00 s"):
            list(segment.blocks())
    else:
        np.testing.assert_array_equal(np.concatenate([block for _, block in segment.blocks()]), expected)


def test_a_duration_without_offset_is_only_metadata(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,duration,caption\na.wav,1.5,x\n")
    (item,) = _items(open_source(tmp_path / "m.csv"))
    assert isinstance(item, ClipItem)
    assert (item.audio, item.metadata) == (FileAudio(tmp_path / "a.wav"), {"duration": "1.5"})


@pytest.mark.parametrize("columns", ["start,end", "start_time,end_time", "onset,offset"])
def test_different_start_times_for_one_file_raise(tmp_path: Path, columns: str) -> None:
    (tmp_path / "m.csv").write_text(f"path,{columns},caption\na.wav,0,1,x\nb.wav,3,4,z\na.wav,1,2,y\n")
    with pytest.raises(DatasetError, match=r"a.wav has rows with \w+ 0 and 1; .* give the columns offset and duration"):
        list(open_source(tmp_path / "m.csv"))
    # One start time per file: the file may be a segment already, and the column only describes it.
    (tmp_path / "m.csv").write_text(f"path,{columns},caption\na.wav,0,1,x\nb.wav,3,4,z\na.wav,0,1,y\n")
    assert _clips(open_source(tmp_path / "m.csv")) == {"a": ["x", "y"], "b": ["z"]}
