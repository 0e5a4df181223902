from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slap_fast.data.format.captions import captions_of, find_caption_columns, table_captions
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.source import BytesAudio, ClipItem, FileAudio, Rejection, TarAudio
from slap_fast.data.prepare.source_detection import open_source
from tests.data.builders import write_tar

Rows = list[dict[str, Any]]


def _write_csv(path: Path, rows: Rows, delimiter: str = ",") -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines))


_WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".csv": _write_csv,
    ".tsv": lambda path, rows: _write_csv(path, rows, "\t"),
    ".json": lambda path, rows: _write(path, [json.dumps(rows)]),
    ".jsonl": lambda path, rows: _write(path, [json.dumps(row) for row in rows]),
    ".parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
}


def _items(source: Any) -> list[ClipItem | Rejection]:
    items = list(source)
    assert source.count() in (None, len(items))
    return items


def _clips(source: Any) -> dict[str, list[str]]:
    items = _items(source)
    assert all(isinstance(item, ClipItem) for item in items), items
    return {item.name: list(item.captions) for item in items if isinstance(item, ClipItem)}


@pytest.mark.parametrize("extension", _WRITERS)
@pytest.mark.parametrize("audio", ["audio", "path", "File_Name", "filename", "audio_path"])
@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        ({"caption": "a dog"}, ["a dog"]),
        ({"text": "a dog", "title": "no caption"}, ["a dog"]),
        ({"caption_1": "a dog", "caption_2": "a cat", "text": "other"}, ["a dog", "a cat"]),
        ({"Caption": " a  dog\n", "caption 2": ""}, ["a dog"]),
    ],
)
def test_manifests(tmp_path: Path, extension: str, audio: str, columns: dict[str, str], captions: list[str]) -> None:
    manifest = tmp_path / f"manifest{extension}"
    _WRITERS[extension](manifest, [{audio: "sub/a.wav", **columns}, {audio: "/abs/b.mp3", **columns}])
    items = _items(open_source(manifest))
    assert [list(item.captions) for item in items if isinstance(item, ClipItem)] == [captions] * 2
    assert [item.audio for item in items if isinstance(item, ClipItem)] == [
        FileAudio(tmp_path / "sub/a.wav"),
        FileAudio(Path("/abs/b.mp3")),
    ]


@pytest.mark.parametrize("extension", [".json", ".jsonl", ".parquet"])
def test_lists_of_captions_and_other_columns(tmp_path: Path, extension: str) -> None:
    manifest = tmp_path / f"manifest{extension}"
    _WRITERS[extension](manifest, [{"audio": "a.wav", "captions": ["a dog", "", "a dog", "a cat"], "year": 1999}])
    (item,) = _items(open_source(manifest))
    assert isinstance(item, ClipItem)
    assert (list(item.captions), item.metadata) == (["a dog", "a cat"], {"year": 1999})


@pytest.mark.parametrize("extension", _WRITERS)
def test_rows_of_the_same_audio_are_merged(tmp_path: Path, extension: str) -> None:
    names = ["a.wav", "b.wav", "./a.wav", "c.wav", "b.wav", "a.wav"]
    rows = [{"audio": name, "caption": f"{position % 4}"} for position, name in enumerate(names)]
    _WRITERS[extension](tmp_path / f"m{extension}", rows)
    assert _clips(open_source(tmp_path / f"m{extension}")) == {"a": ["0", "2", "1"], "b": ["1", "0"], "c": ["3"]}


def test_columns_and_root_can_be_given(tmp_path: Path) -> None:
    _write_csv(tmp_path / "m.csv", [{"audio": "x", "where": "a.wav", "what": "a dog", "caption": "no"}])
    source = open_source(
        tmp_path / "m.csv", audio_root=tmp_path / "root", audio_column="where", caption_columns=["what"]
    )
    (item,) = _items(source)
    assert isinstance(item, ClipItem)
    assert (item.audio, item.captions) == (FileAudio(tmp_path / "root/a.wav"), ["a dog"])


def test_audio_inside_parquet(tmp_path: Path) -> None:
    rows: Rows = [
        {"audio": {"bytes": b"RIFF", "path": "a.wav"}, "text": "a dog"},
        {"audio": {"bytes": b"x", "path": None}},
    ]
    _WRITERS[".parquet"](tmp_path / "m.parquet", rows)
    first, second = _items(open_source(tmp_path / "m.parquet"))
    assert isinstance(first, ClipItem)
    assert isinstance(second, ClipItem)
    assert (first.name, first.captions, first.audio) == ("a", ["a dog"], BytesAudio(b"RIFF"))
    assert (second.captions, second.audio) == ([], BytesAudio(b"x"))


@pytest.mark.parametrize(
    ("name", "content", "bad_origins"),
    [
        ("m.csv", b"path,caption\na.wav,one, two\nb.wav,fine\nc.wav\n,no path\n", ["m.csv:2", "m.csv:4", "m.csv:5"]),
        ("m.csv", b"path,caption\na.wav,caf\xe9\nb.wav,fine\n", ["m.csv:2"]),
        ("m.csv", b"path,caption\nb.wav,fine\na.wav," + b"x" * 140_000 + b"\n", ["m.csv:3"]),
        ("m.jsonl", b'{"path": "b.wav", "caption": "fine"}\n{"path":\n\n[1]\n{"caption": "x"}\n{"path": 3}\n',
         ["m.jsonl:2", "m.jsonl:4", "m.jsonl:5", "m.jsonl:6"]),
        ("m.json", b'[{"path": "b.wav", "caption": "fine"}, null, {"path": ""}]', ["m.json[1]", "m.json[2]"]),
    ],
)  # fmt: skip
def test_a_malformed_row_rejects_only_itself(tmp_path: Path, name: str, content: bytes, bad_origins: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    items = _items(open_source(tmp_path / name))
    rejected = [item for item in items if isinstance(item, Rejection)]
    assert [item.origin for item in rejected] == bad_origins
    assert {item.reason for item in rejected} == {"malformed_row"}
    assert [item.name for item in items if isinstance(item, ClipItem)] == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "name,caption\na,b\n", "no column has a known name for audio paths; its columns are name, caption"),
        ("m.csv", "path,label\na,b\n", "no column has a known name for captions; its columns are path, label"),
        ("m.json", "{", "not JSON"),
        ("m.json", '{"a": 1}', "neither a list of objects nor"),
        ("m.parquet", "text", "not a readable Parquet file"),
        ("m.xlsx", "text", "neither a folder, a .tar, nor one of"),
    ],
)
def test_unusable_manifests_raise(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        open_source(tmp_path / name)


def test_wrong_arguments_raise(tmp_path: Path) -> None:
    _write_csv(tmp_path / "m.csv", [{"path": "a.wav", "caption": "a"}])
    with pytest.raises(DatasetError, match="does not exist"):
        open_source(tmp_path / "no.csv")
    with pytest.raises(DatasetError, match="no column 'where'; its columns are path, caption"):
        open_source(tmp_path / "m.csv", audio_column="where")
    with pytest.raises(DatasetError, match="no column 'b', 'c'"):
        open_source(tmp_path / "m.csv", caption_columns=["b", "caption", "c"])
    with pytest.raises(DatasetError, match="layout 'nonsense' is unknown"):
        open_source(tmp_path / "m.csv", layout="nonsense")  # type: ignore[arg-type]
    with pytest.raises(
        DatasetError, match=r"holds no audio and no \.tar; to read a table, give it as SOURCE: .*/m.csv"
    ):
        open_source(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="contains no audio file"):
        open_source(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"holds no \.tar"):
        open_source(tmp_path, layout="webdataset")


_CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(rows=st.lists(st.tuples(_CELL, _CELL), max_size=10), extension=st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_no_free_form_manifest_loses_or_changes_a_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], extension: str
) -> None:
    manifest = tmp_path_factory.mktemp("m") / f"m{extension}"
    table = [
        {"path": f"{position}.wav", "caption_1": one, "caption_2": two} for position, (one, two) in enumerate(rows)
    ]
    _WRITERS[extension](manifest, [{"path": "first.wav", "caption_1": "x", "caption_2": "y"}, *table])
    assert list(_clips(open_source(manifest)).items())[1:] == [
        (str(position), table_captions([one, two])) for position, (one, two) in enumerate(rows)
    ]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=12), values, max_size=4),
    max_leaves=12,
)


@given(_JSON | st.dictionaries(st.sampled_from(["caption", "captions", "text", "caption_3", "x"]), _JSON))
def test_captions_of_any_value_are_clean(value: Any) -> None:
    captions = captions_of(value)
    assert len(set(captions)) == len(captions)
    for caption in captions:
        assert caption == " ".join(caption.split()) != ""
        caption.encode("utf-8")
    assert captions_of(captions) == captions


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a dog", ["a dog"]),
        ('["a dog", "a cat"]', ["a dog", "a cat"]),
        ("['a dog', \"the cat's\"]", ["a dog", "the cat's"]),
        ("[music]", ["[music]"]),
        ("[1, 2]", ["[1, 2]"]),
        ('["a dog", 1984, null]', ["a dog", "1984"]),
        (["a dog", 1984, 2.5, True, None], ["a dog", "1984", "2.5"]),
        ([1, 2], []),
        ("[" * 100_000 + "]" * 100_000, ["[" * 100_000 + "]" * 100_000]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("  \t\n", []),
        (None, []),
        (3, []),
        ({"text": "a", "caption": ["b", "c"]}, ["b", "c"]),
        ({"text": ["a"], "tag": "b"}, ["a"]),
    ],
)
def test_captions(value: Any, captions: list[str]) -> None:
    assert captions_of(value) == captions


def test_caption_columns() -> None:
    assert find_caption_columns(["id", "caption_id", "Caption_1", "captions", "text"]) == ["Caption_1", "captions"]
    assert find_caption_columns(["texture", "context", "description"]) == ["description"]
    assert find_caption_columns(["id"]) == []


def test_folder_with_sidecars(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.wav", "b.mp3", "deep/c.v2.FLAC", "d.wav", "e.wav", ".hidden.wav", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("a dog\n\na cat\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"captions": ["rain"], "label": 3}')
    (tmp_path / "b.txt").write_text("wind")
    (tmp_path / "deep/c.v2.json").write_text('"waves"')
    (tmp_path / "e.json").write_text("{")
    items = {item.origin: item for item in _items(open_source(tmp_path))}
    passed_over = [items.pop(name) for name in (".hidden.wav", "notes.md")]
    assert [item.reason for item in passed_over if isinstance(item, Rejection)] == ["hidden", "not_audio"]
    a, b, d, deep, e = (items.pop(name) for name in ("a.wav", "b.mp3", "d.wav", "deep/c.v2.FLAC", "e.wav"))
    assert not items
    assert isinstance(a, ClipItem)
    assert isinstance(b, ClipItem)
    assert isinstance(deep, ClipItem)
    assert isinstance(d, ClipItem)
    assert (a.name, a.captions, a.audio) == ("a", ["a dog", "a cat"], FileAudio(tmp_path / "a.wav"))
    assert (b.captions, b.metadata["label"]) == (["rain", "wind"], 3)
    assert (deep.name, deep.captions) == ("deep/c.v2", ["waves"])
    assert d.captions == []
    assert isinstance(e, Rejection)
    assert (e.origin, e.reason) == ("e.wav", "bad_metadata")


def test_webdataset_tars(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        {
            "x/1.wav": b"one",
            "x/1.txt": b"a dog",
            "2.json": b'{"text": ["a cat"], "tag": ["pet"]}',
            "2.mp3": b"two",
            "3.flac": b"three",
            "4.txt": b"no audio",
            "5.wav": b"five",
            "5.json": b"{",
        },
    )
    write_tar(tmp_path / "b.tar", {"1.ogg": b"again", "1.txt": b"rain"})
    items = _items(open_source(tmp_path))
    one, two, three, four, five, again = items
    assert [item.name for item in items if isinstance(item, ClipItem)] == ["x/1", "2", "3", "1"]
    assert isinstance(one, ClipItem)
    assert isinstance(two, ClipItem)
    assert isinstance(three, ClipItem)
    assert isinstance(four, Rejection)
    assert isinstance(five, Rejection)
    assert isinstance(again, ClipItem)
    assert one.captions == ["a dog"]
    assert isinstance(two.audio, TarAudio)
    assert (tmp_path / "a.tar").read_bytes()[two.audio.offset :][: two.audio.size] == b"two"
    assert (two.captions, two.metadata["tag"]) == (["a cat"], ["pet"])
    assert three.captions == []
    assert (four.origin, four.reason) == ("a.tar/4", "no_audio")
    assert (five.origin, five.reason) == ("a.tar/5", "bad_metadata")
    assert _clips(open_source([tmp_path / "b.tar"])) == _clips(open_source(tmp_path / "b.tar")) == {"1": ["rain"]}


def test_a_malformed_tar_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.wav": b"one", "1.txt": b"a dog", "2.wav": b"x" * 5000})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:4000])
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    write_tar(tmp_path / "c.tar", {"3.wav": b"three", "3.txt": b"rain"})
    first, cut, no_tar, last = _items(open_source(tmp_path))
    assert isinstance(first, ClipItem)
    assert isinstance(last, ClipItem)
    assert (first.name, last.name) == ("1", "3")
    assert isinstance(cut, Rejection)
    assert isinstance(no_tar, Rejection)
    assert (cut.origin, cut.reason) == (str(tmp_path / "a.tar"), "malformed_tar")
    assert (no_tar.origin, no_tar.reason) == (str(tmp_path / "b.tar"), "malformed_tar")


@pytest.mark.parametrize(
    "file",
    [
        "-0Gj8_vB1q4.wav",
        "Y-0Gj8_vB1q4.wav",
        "audio/-0Gj8_vB1q4_30.flac",
        "Y-0Gj8_vB1q4_30.000_40.000.mp3",
        "-0Gj8_vB1q4_30000_40000.ogg",
        "103549.wav",
    ],
)
def test_audiocaps(tmp_path: Path, file: str) -> None:
    ids = [103549, 103548, 103541, 103542, 103543]
    rows = [
        {"audiocap_id": id, "youtube_id": "-0Gj8_vB1q4", "start_time": 30, "caption": f"caption {id}"} for id in ids
    ]
    other = {"audiocap_id": 7, "youtube_id": "0Gj8_vB1q4-", "start_time": 3, "caption": "other"}
    _write_csv(tmp_path / "val.csv", [*rows[:2], other, *rows[2:]])
    # The last two are the same video at another time, and another video with a similar name.
    for name in (file, "-0Gj8_vB1q4_130.wav", "-0Gj8_vB1q4x.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clip, missing = _items(open_source(tmp_path / "val.csv"))
    assert isinstance(clip, ClipItem)
    assert isinstance(missing, ClipItem)
    assert clip.captions == [f"caption {id}" for id in ids]
    assert clip.audio == FileAudio(tmp_path / file)
    assert clip.name == "-0Gj8_vB1q4_30"
    assert isinstance(missing.audio, FileAudio)
    assert not missing.audio.path.exists()


def test_clotho(tmp_path: Path) -> None:
    row = {"file_name": "Garden (1).wav", **{f"caption_{n}": f"caption {n}" for n in range(1, 6)}}
    _write_csv(tmp_path / "clotho_captions_evaluation.csv", [row])
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/Garden (1).wav").touch()
    (item,) = _items(open_source(tmp_path / "clotho_captions_evaluation.csv", layout="clotho"))
    assert isinstance(item, ClipItem)
    assert item.audio == FileAudio(tmp_path / "evaluation/Garden (1).wav")
    assert item.captions == [f"caption {n}" for n in range(1, 6)]
    _write_csv(tmp_path / "m.csv", [{"path": "a.wav", "caption": "a"}])
    with pytest.raises(DatasetError, match="no column 'file_name'"):
        open_source(tmp_path / "m.csv", layout="clotho")


def test_wavcaps(tmp_path: Path) -> None:
    for subset, clips in {"FreeSound": ["17"], "SoundBible": ["17"], "AudioSet_SL": ["Yb0RFKhbpFJA.wav"]}.items():
        (tmp_path / "json_files" / subset).mkdir(parents=True)
        data = [{"id": clip, "caption": f"{subset} sounds.", "duration": 2.0} for clip in [*clips, "gone"]]
        (tmp_path / "json_files" / subset / "final.json").write_text(json.dumps({"num": 1, "data": data}))
        (tmp_path / "audio" / subset).mkdir(parents=True)
    for file in ("AudioSet_SL/Yb0RFKhbpFJA.flac", "FreeSound/17.flac", "SoundBible/17.flac"):
        (tmp_path / "audio" / file).touch()
    items = _items(open_source(tmp_path / "json_files", layout="wavcaps", audio_root=tmp_path / "audio"))
    names = [item.name for item in items if isinstance(item, ClipItem)]
    subsets = {"AudioSet_SL": "Yb0RFKhbpFJA", "FreeSound": "17", "SoundBible": "17"}
    assert names == [f"{subset}/{clip}" for subset, clip in subsets.items() for clip in (clip, "gone")]
    found = {
        str(item.audio.path.relative_to(tmp_path / "audio")): list(item.captions)
        for item in items
        if isinstance(item, ClipItem) and isinstance(item.audio, FileAudio)
    }
    assert found == {
        "AudioSet_SL/Yb0RFKhbpFJA.flac": ["AudioSet_SL sounds."],
        "FreeSound/17.flac": ["FreeSound sounds."],
        "SoundBible/17.flac": ["SoundBible sounds."],
        **{f"{subset}/gone.flac": [f"{subset} sounds."] for subset in subsets},
    }
    one = open_source(tmp_path / "json_files/FreeSound/final.json", audio_root=tmp_path / "audio")
    assert _clips(one) == {"17": ["FreeSound sounds."], "gone": ["FreeSound sounds."]}
