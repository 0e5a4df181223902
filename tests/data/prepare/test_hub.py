"""Datasets of the hub, with the real `datasets` and a local stand-in of the hub; and those that `datasets` saved."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare.source import BytesAudio, ClipItem, Rejection
from slap_fast.data.prepare.source_detection import open_source
from tests.data.builders import encode
from tests.hub_server import HubServer

datasets = pytest.importorskip("datasets")
SECOND = np.arange(16_000, dtype=np.int16)


def _sound(number: int) -> bytes:
    return encode(SECOND[: 8_000 + number])


def _parquet(rows: list[dict[str, Any]], features: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    schema = datasets.Features({"audio": datasets.Audio(), **features}).arrow_schema
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file, row_group_size=2)
    return file.getvalue()


def _cell(number: int) -> dict[str, Any]:
    return {"bytes": _sound(number), "path": f"{number}.flac"}


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(7):
            audio = "flac" if number < 6 else "ogg"  # datasets takes the columns from the first five samples
            caption = json.dumps({"caption": [f"c{number}", f"d{number}"]}).encode()
            for extension, content in ((audio, _sound(number)), ("json", caption)):
                member = tarfile.TarInfo(f"clips/{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    text, number = datasets.Value("string"), datasets.Value("int32")
    captions = datasets.List(text)
    shard = {
        (split, one): _parquet(
            [{"audio": _cell(n), "caption": [f"a{n}", f"b{n}"]} for n in rows], {"caption": captions}
        )
        for split in ("train", "test")
        for one, rows in enumerate(([0, 1, 1, 2], [3, 0]))
    }
    audiocaps = [
        {"audio": _cell(clip), "youtube_id": "ab"[clip] * 11, "start_time": 30, "caption": f"caption {clip} {row}"}
        for row in range(5)
        for clip in range(2)
    ]
    audiocaps[0]["audio"] = None
    esc50 = [{"audio": _cell(1), "filename": "1.wav", "fold": 1, "target": 0, "category": "sea_waves"}]
    configs = b"---\nconfigs:\n" + b"".join(
        b"- config_name: %s\n  data_files: data/train-0000%d-of-00002.parquet\n" % (name, one)
        for one, name in enumerate((b"small", b"large"))
    )
    tables = {f"data/{split}-0000{one}-of-00002.parquet": content for (split, one), content in shard.items()}
    server = HubServer()
    with server.running():
        for name, files in {
            "tables": tables,
            "configs": {"README.md": configs + b"---\n", **tables},
            "audiocaps": {"data/test-00000-of-00001.parquet": _parquet(
                audiocaps, {"youtube_id": text, "start_time": number, "caption": text})},
            "esc50": {"data/train-00000-of-00001.parquet": _parquet(
                esc50, {"filename": text, "fold": number, "target": number, "category": text})},
            "classes": {"data/train-00000-of-00001.parquet": _parquet(
                [{"audio": _cell(1), "label": 1}], {"label": datasets.ClassLabel(names=["cat", "big_dog"])})},
            "folder": {"train/metadata.csv": b"file_name,caption\n1.flac,one\ngone.flac,no\n",
                       "train/1.flac": _sound(1), "train/2.flac": _sound(2)},
            "tars": {"train-000.tar": _tar()},
            "outside": {"train.csv": b"audio,caption\n/etc/hostname,a\n../x.flac,b\nfile:///etc/hostname,c\n"},
            "script": {"script.py": b"raise SystemExit('code was run')"},
            "empty": {"README.md": b"# nothing\n"},
        }.items():  # fmt: skip
            server.add(f"me/{name}", files, repo_type="dataset")
        server.add("me/private", tables, repo_type="dataset", private=True)
        server.add("me/gated", tables, repo_type="dataset", gated=True)
        server.users["token"] = "me"
        yield server


_OPEN = """
import json, sys
from slap_fast.audio.errors import AudioError
from slap_fast.data.prepare.source_detection import open_source
from slap_fast.errors import SlapFastError

for path, arguments in json.loads(sys.argv[1]):
    try:
        source = open_source(path, **arguments)
        clips, rejected = {}, []
        for item in source:
            if not hasattr(item, "captions"):
                rejected.append([item.origin, item.reason, item.seen])
                continue
            try:
                with item.audio.open() as sound:
                    number = sum(len(block) for _, block in sound.blocks()) - 8000
            except AudioError as error:
                number = error.reason
            clips[item.name] = [item.captions, number, item.seen]
        print(json.dumps([clips, rejected, source.seen]))
    except SlapFastError as error:
        print(json.dumps(str(error)))
"""


def _run(hub: HubServer, home: Path, *command: str, token: str | None = None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.environment(home, token)
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


STREAMS: dict[str, dict[str, Any]] = {
    "hf://me/tables": {"split": "train"},
    "hf://me/configs/large": {},
    "hf://me/audiocaps": {},
    "hf://me/esc50": {},
    "hf://datasets/me/classes": {"caption_template": "hear {}"},
    "hf://me/folder@main": {},
    "hf://me/tars": {},
    "hf://me/outside": {},
}
FAULTS = {
    ("hf://me/tables", None): "hf://me/tables: has several splits; choose one with --split: train, test",
    ("hf://me/tables", "dev"): "has no split 'dev'; choose one with --split: train, test",
    ("hf://me/configs", None): "has several configurations; give one, as hf://me/configs/CONFIGURATION: small, large",
    ("hf://me/configs/tiny", None): "it has no configuration 'tiny'; give one",
    ("hf://me/tables@v9", None): "it has no revision 'v9'",
    ("hf://me/classes", None): "no column has a known name for captions; its columns are audio, label",
    ("hf://me/script", None): "script.py in the dataset is a program that reads its data, and is not run",
    ("hf://me/empty", None): "doesn't contain any data files",
    ("hf://me/gated", None): "/datasets/me/gated, then log in",
    ("hf://me/private", None): "no such dataset at",
    ("hf://me/none", None): "or it is private; check the name, or log in with `hf auth login`, or set HF_TOKEN",
    ("hf://me", None): "write hf://owner/name[@revision][/config]",
}


@pytest.fixture(scope="module")
def answers(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Any]:
    home = tmp_path_factory.mktemp("home")
    cases = {(path, arguments.get("split")): arguments for path, arguments in STREAMS.items()}
    cases |= {(path, split): {"split": split} for path, split in FAULTS}
    questions = json.dumps([(path, arguments) for (path, _), arguments in cases.items()])
    found = dict(zip(cases, map(json.loads, _run(hub, home, "-c", _OPEN, questions)), strict=True))
    assert not [file for file in home.rglob("*") if file.suffix in (".parquet", ".arrow", ".flac", ".tar")]
    return found


def test_streams_of_every_format(answers: dict[tuple[str, str | None], Any]) -> None:
    streams = {path: answer for (path, split), answer in answers.items() if (path, split) not in FAULTS}
    # Rows in sequence are merged; a later row of the same audio is named.
    assert streams["hf://me/tables"] == [
        {str(n): [[f"a{n}", f"b{n}"], n, 2 if n == 1 else 1] for n in range(4)},
        [["train[5] 0.flac", "repeated_audio", 1]],
        6,
    ]
    assert streams["hf://me/configs/large"][0] == {"3": [["a3", "b3"], 3, 1], "0": [["a0", "b0"], 0, 1]}
    # The five rows of a clip of AudioCaps are anywhere; one has no audio.
    captions = [[f"caption {clip} {row}" for row in range(5)] for clip in range(2)]
    assert streams["hf://me/audiocaps"] == [
        {"0": [captions[0], 0, 4], "1": [captions[1], 1, 5]}, [["test[0]", "malformed_row", 1]], 10,
    ]  # fmt: skip
    assert streams["hf://me/esc50"][0] == {"1": [["the sound of sea waves"], 1, 1]}
    assert streams["hf://datasets/me/classes"][0] == {"1": [["hear big dog"], 1, 1]}
    assert streams["hf://me/folder@main"] == [
        {"train/1": [["one"], 1, 1], "train/gone": [["no"], "missing_file", 1]},
        [["train/2.flac", "no_captions", 1]], 3,
    ]  # fmt: skip
    assert streams["hf://me/tars"] == [
        {f"clips/{n}": [[f"c{n}", f"d{n}"], n, 1] for n in range(6)}, [["train[6] clips/6", "malformed_row", 1]], 7,
    ]  # fmt: skip
    outside = ("/etc/hostname", "../x.flac", "file:///etc/hostname")
    rejected = [[f"train[{n}] {file}", "malformed_row", 1] for n, file in enumerate(outside)]
    assert streams["hf://me/outside"] == [{}, rejected, 3]


def test_what_cannot_be_read_is_one_clear_line(answers: dict[tuple[str, str | None], Any]) -> None:
    for case, expected in FAULTS.items():
        assert expected in answers[case]
        assert "\n" not in answers[case]


def test_the_command_prepares_a_private_dataset(hub: HubServer, tmp_path: Path) -> None:
    command = ["-m", "slap_fast", "prepare", "hf://me/private", "--split", "test", "--out", str(tmp_path / "out")]
    command += ["--workers", "1", "--vocab-size", "300", "--quiet", "--json"]
    (line,) = _run(hub, tmp_path, *command, token="token")
    report = json.loads(line)
    assert (report["clips"], report["merged"], report["rejected"]) == (4, 1, {"repeated_audio": 1})
    index = ClipIndex.open(tmp_path / "out")
    assert index.info["prepared_with"]["source"]["revision"] == hub.repos["dataset", "me/private"].refs["main"]


def test_saved_datasets_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [{"audio": _cell(number), "caption": [f"c{number}"]} for number in range(3)]
    table = pyarrow.Table.from_pylist(rows)
    saved = datasets.DatasetDict({split: datasets.Dataset(table) for split in ("train", "test")})
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    expected = {str(number): ([f"c{number}"], BytesAudio(_sound(number))) for number in range(3)}
    with pytest.raises(DatasetError, match="has several splits; choose one with --split: train, test"):
        open_source(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved/test").glob("*.arrow")
    for path, split in ((tmp_path / "saved", "train"), (tmp_path / "saved/test", None), (arrow, None)):
        items = [item for item in open_source(path, split=split) if isinstance(item, ClipItem)]
        assert {item.name: (list(item.captions), item.audio) for item in items} == expected
    # As in the cache of datasets.
    cached = tmp_path / "cache"
    cached.mkdir()
    for name in ("name-train.arrow", "name-test.arrow", "cache-0123456789abcdef.arrow", "dataset_info.json"):
        (cached / name).write_bytes(arrow.read_bytes())
    with pytest.raises(DatasetError, match="contains the splits 'test', 'train'"):
        open_source(cached)
    source = open_source(cached, split="test")
    assert [item.origin for item in source if isinstance(item, Rejection)] == [
        "cache-0123456789abcdef.arrow", "dataset_info.json",
    ]  # fmt: skip
    assert source.seen == 5
    # A stream that was cut off reads as a shorter one.
    arrow.write_bytes(arrow.read_bytes()[:-8])
    with pytest.raises(DatasetError, match=f"{arrow.name}: .*it has no end marker, so it is truncated"):
        open_source(tmp_path / "saved/test")
    arrow.unlink()
    with pytest.raises(DatasetError, match=f"lists {arrow.name}, which is missing"):
        open_source(tmp_path / "saved/test")


def test_class_numbers_of_saved_datasets_become_captions(tmp_path: Path) -> None:
    features = datasets.Features({"audio": datasets.Audio(), "label": datasets.ClassLabel(names=["cat", "big_dog"])})
    rows = [{"audio": _cell(number), "label": number} for number in range(3)]
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).save_to_disk(tmp_path / "saved")
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        with pytest.raises(DatasetError, match=r"or --caption-template .* for the classes in 'label'"):
            open_source(path)
        *clips, rejected = open_source(path, caption_template="hear {}")
        assert [(item.captions, item.metadata["label"]) for item in clips if isinstance(item, ClipItem)] == [
            (["hear cat"], "cat"),
            (["hear big dog"], "big dog"),
        ]
        assert isinstance(rejected, Rejection)
        assert rejected.detail == "label is 2; there are 2 classes"
    (tmp_path / "numbers.csv").write_text("file,label\na.wav,3\n")
    (item,) = open_source(tmp_path / "numbers.csv", caption_template="hear {}")
    assert isinstance(item, Rejection)
    assert item.detail.startswith("label is 3, a number without a name")
