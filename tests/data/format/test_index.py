from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slap_fast.data.format.dataset_files import INDEX_DTYPE
from slap_fast.data.format.index import ClipIndex, DatasetError, parse_metadata
from slap_fast.data.prepare import prepare
from slap_fast.data.prepare.reindex import reindex
from tests.data.builders import prepared, write_tar
from tests.models.damage import damage

_CLIPS = 12


def _flac(samples: int, rate: int = 16_000, channels: int = 1, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels))
    soundfile.write(buffer, noise, rate, format="FLAC")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    rows = []
    for clip in range(_CLIPS):
        (folder / f"{clip}.flac").write_bytes(_flac(800 + 1600 * clip, seed=clip))
        rows.append({"path": f"{clip}.flac", "captions": [f"caption {n} of {clip}" for n in range(1 + clip % 3)]})
    (folder / "m.json").write_text(json.dumps(rows))
    prepare(folder / "m.json", folder / "dataset", workers=0, max_shard_bytes=80_000, progress=False)
    return folder / "dataset"


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "dataset")


def test_every_clip_is_at_its_indexed_position(dataset: Path) -> None:
    index = ClipIndex.open(dataset)
    assert len(index) == _CLIPS
    assert len(index.shards) > 2
    assert isinstance(index.records, np.memmap)
    np.testing.assert_array_equal(
        index.durations, np.array([(800 + 1600 * clip) / 16_000 for clip in range(_CLIPS)], np.float32)
    )
    for clip in range(_CLIPS):
        pcm, rate = soundfile.read(io.BytesIO(index.read_audio(clip)), dtype="int16")
        expected, _ = soundfile.read(io.BytesIO(_flac(800 + 1600 * clip, seed=clip)), dtype="int16")
        np.testing.assert_array_equal(pcm, expected)
        assert rate == index.records[clip]["sample_rate"] == 16_000
        captions = [f"caption {n} of {clip}" for n in range(1 + clip % 3)]
        assert index.read_metadata(clip)["captions"] == captions
        assert index.records[clip]["captions"] == len(captions)
        assert index.key(clip) == str(clip)
    assert list(index.iter_captions())[:4] == ["caption 0 of 0", "caption 0 of 1", "caption 1 of 1", "caption 0 of 2"]


def test_the_totals_match_the_clips(dataset: Path) -> None:
    index = ClipIndex.open(dataset)
    assert index.info["clips"] == sum(shard["clips"] for shard in index.info["shards"]) == _CLIPS
    assert index.info["captions"] == index.records["captions"].sum()
    assert index.info["seconds"] == pytest.approx(index.durations.sum())
    assert all((dataset / shard["name"]).stat().st_size == shard["bytes"] for shard in index.info["shards"])


def test_an_index_can_be_pickled_and_shared_by_threads(dataset: Path) -> None:
    index = pickle.loads(pickle.dumps(ClipIndex.open(dataset)))
    clips = np.random.default_rng(0).integers(0, _CLIPS, 500).tolist()
    expected = [index.read_audio(clip) for clip in range(_CLIPS)]
    with ThreadPoolExecutor(8) as pool:
        assert all(data == expected[clip] for clip, data in zip(clips, pool.map(index.read_audio, clips), strict=True))


def test_more_shards_than_open_files_can_be_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slap_fast.data.format.shard_files._OPEN_SHARDS", 1)
    index = ClipIndex.open(dataset)
    expected = [index.read_audio(clip) for clip in range(_CLIPS)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(index.read_audio, list(range(_CLIPS)) * 20)) == expected * 20


def _cut(name: str, keep: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return damage


def _rot(name: str, place: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 0x40
        (folder / name).write_bytes(content)

    return damage


def _set_info(**fields: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        info = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**info, **fields}))

    return damage


def _set_shard(**fields: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        info = json.loads((folder / "dataset.json").read_text())
        info["shards"][0] |= fields
        (folder / "dataset.json").write_text(json.dumps(info))

    return damage


def _index_header(header: str) -> Callable[[Path], None]:
    """Replaces the header of the index."""

    def damage(folder: Path) -> None:
        content = (folder / "index.npy").read_bytes()
        size = int.from_bytes(content[8:10], "little")
        text = header.encode().ljust(size - 1) + b"\n"
        (folder / "index.npy").write_bytes(content[:8] + len(text).to_bytes(2, "little") + text + content[10 + size :])

    return damage


def _empty(folder: Path) -> None:
    np.save(folder / "index.npy", np.zeros(0, INDEX_DTYPE))
    _set_info(clips=0, shards=[], captions=0, seconds=0)(folder)


def _set_record(field: str, value: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        records = np.load(folder / "index.npy")
        records[field][5] = value
        np.save(folder / "index.npy", records)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), r"dataset\.json: missing"),
        (_cut("dataset.json", 50), r"dataset\.json: cannot be read as JSON"),
        (lambda folder: (folder / "dataset.json").write_text("[]"), "no format_version"),
        (_set_info(format_version=2), "format version 2, this slap-fast reads 1"),
        (_set_info(mel_mean="x"), "field 'mel_mean' is 'x'"),
        (_set_info(shards=[3]), "shard 0 is 3"),
        (_set_shard(clips=3), "the clip counts of the shards do not sum to 12"),
        (_set_shard(clips="x"), "the clip counts of the shards do not sum to 12"),
        (_set_shard(clips=True), "the clip counts of the shards do not sum to 12"),
        *(
            (_set_shard(name=name), "it must be the name of a .tar file in the folder, without a path")
            for name in (
                "/etc/passwd",
                "../outside.tar",
                "a/b.tar",
                "..",
                "",
                "x\0.tar",
                "\ud800.tar",
                None,
                3,
                ["x.tar"],
            )
        ),
        *((_set_shard(bytes=size), "shard 0 has .* bytes") for size in (-1, 1e400, 2**70, "x", None, True)),
        (_set_info(mel_std=0.0), "mel_std is 0.0; it must be above 0"),
        (_set_info(mel_mean=float("nan")), "field 'mel_mean' is nan"),
        (_set_info(seconds=0), "seconds is 0; it must be above 0"),
        (_set_info(clips=True), "field 'clips' is True"),
        (_set_info(seconds=-1), "field 'seconds' is -1"),
        (_empty, "the dataset has no clips"),
        (_index_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000000,)}"), "index.npy"),
        (_index_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "index.npy"),
        (_index_header("{'descr': '|O', 'fortran_order': False, 'shape': (12,)}"), "index.npy"),
        (_index_header("(" * 600), "index.npy: truncated or not an array"),
        (_index_header("__import__('os').system('true')"), "index.npy: truncated or not an array"),
        (lambda folder: (folder / "index.npy").write_bytes(b"PK\x03\x04" + b"x" * 500), "index.npy: truncated"),
        (_set_info(clips=11), r"index\.npy: 12 clips, but dataset\.json says 11"),
        (lambda folder: (folder / "index.npy").unlink(), r"index\.npy: missing"),
        (_cut("index.npy", 300), r"index\.npy: truncated"),
        (_cut("index.npy", 20), r"index\.npy: truncated"),
        (_cut("index.npy", 128), r"index\.npy: truncated"),
        (_cut("index.npy", 0), r"index\.npy: truncated"),
        (lambda folder: (folder / "index.npy").write_text("text" * 100), r"index\.npy: truncated or not an array"),
        (lambda folder: np.save(folder / "index.npy", np.zeros(12)), r"index\.npy: holds float64"),
        (lambda folder: np.save(folder / "index.npy", np.zeros((12, 1), INDEX_DTYPE)), "not a list of clip records"),
        (_cut("shard-000001.tar", 20480), r"shard-000001\.tar: 20480 bytes, but dataset\.json says"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), r"shard-000001\.tar: cannot be read"),
        (_set_record("shard", 99), "clip 5 has an impossible record"),
        (_set_record("audio_offset", 1 << 40), "clip 5 has an impossible record"),
        (_set_record("audio_offset", (1 << 64) - 1), "clip 5 has an impossible record"),
        (_set_record("audio_size", 1 << 31), "clip 5 has an impossible record"),
        (_set_record("meta_size", 1 << 31), "clip 5 has an impossible record"),
        (_set_record("samples", 0), "clip 5 has an impossible record"),
        (_set_record("sample_rate", 0), "clip 5 has an impossible record"),
        (_set_record("captions", 0), "clip 5 has an impossible record"),
    ],
)
def test_a_damaged_dataset_raises_and_names_the_file(
    dataset: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(dataset)
    with pytest.raises(DatasetError, match=message):
        ClipIndex.open(dataset)


def test_a_randomly_damaged_dataset_is_read_or_raises_dataset_error(made: Path, tmp_path: Path) -> None:
    errors = []
    for seed in range(80):
        folder = shutil.copytree(made, tmp_path / str(seed), ignore=lambda *_: ["report.jsonl", ".prepare"])
        what = damage(folder, seed)
        try:
            index = ClipIndex.open(folder)
            for clip in index.read_clips(np.arange(len(index))):
                assert isinstance(clip, DatasetError) or clip.metadata["captions"], what
            assert "clips of" in str(index)
        except DatasetError as error:
            errors.append(str(error))
        shutil.rmtree(folder)
    assert len(errors) > 20
    assert not [message for message in errors if "\n" in message]


def test_an_index_is_validated_once(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dataset / "durations.bin").unlink()
    first = ClipIndex.open(dataset)
    monkeypatch.setattr(
        "slap_fast.data.format.index._checked_parts", lambda *_: pytest.fail("validated every clip again")
    )
    again = ClipIndex.open(dataset)
    assert isinstance(again.durations, np.memmap)
    np.testing.assert_array_equal(again.durations, first.durations)
    again.release()
    np.testing.assert_array_equal(again.durations, first.durations)


@pytest.mark.parametrize(
    "damage",
    [
        _cut("durations.bin", 0),
        _cut("durations.bin", 70),
        lambda folder: (folder / "durations.bin").unlink(),
        lambda folder: (folder / "durations.bin").write_bytes(b"\0" * 112),
        _rot("durations.bin", 70),
        _rot("durations.bin", 66),
        _rot("durations.bin", 63),
        _set_record("samples", 800),
    ],
)
def test_a_durations_file_that_does_not_match_the_index_is_rewritten(
    dataset: Path, damage: Callable[[Path], None]
) -> None:
    damage(dataset)
    index = ClipIndex.open(dataset)
    np.testing.assert_array_equal(index.durations, (index.records["samples"] / 16_000).astype(np.float32))
    assert sorted(path.name for path in dataset.glob("*durations*")) == ["durations.bin"]
    np.testing.assert_array_equal(ClipIndex.open(dataset).durations, index.durations)


def test_a_read_only_folder_can_be_opened(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = np.array(ClipIndex.open(dataset).durations)
    (dataset / "durations.bin").unlink()
    # Even root cannot replace a non-empty folder by a file.
    (dataset / "durations.bin" / "inside").mkdir(parents=True)
    index = ClipIndex.open(dataset)
    np.testing.assert_array_equal(index.durations, expected)
    assert isinstance(index.durations, np.memmap)
    assert "durations.bin: cannot write" in caplog.text
    assert not list(dataset.glob(".durations*"))


def test_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        ClipIndex.open(tmp_path / "nowhere")


def test_a_tar_truncated_after_opening_raises(dataset: Path) -> None:
    index = ClipIndex.open(dataset)
    _cut(index.shards[-1], 600)(dataset)
    with pytest.raises(DatasetError, match="ends at byte 600, but the index lists"):
        index.read_audio(_CLIPS - 1)


def test_malformed_metadata_raises_and_names_tar_and_byte(dataset: Path) -> None:
    index = ClipIndex.open(dataset)
    path = dataset / index.shards[0]
    data = bytearray(path.read_bytes())
    data[int(index.records[0]["meta_offset"]) + 3] = 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"shard-000000\.tar at byte \d+: not JSON"):
        index.read_metadata(0)


def test_an_index_is_rebuilt_from_the_tars(dataset: Path) -> None:
    records, info = np.load(dataset / "index.npy"), json.loads((dataset / "dataset.json").read_text())
    (dataset / "index.npy").write_bytes(b"damaged")
    (dataset / "dataset.json").unlink()
    report = reindex(dataset, progress=False)
    assert (report.clips, report.rejected) == (_CLIPS, {})
    index = ClipIndex.open(dataset)
    np.testing.assert_array_equal(index.records, records)
    for field in ("shards", "clips", "captions", "seconds", "mel_mean", "mel_std"):
        assert index.info[field] == info[field]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars_are_indexed_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: int) -> None:
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", format)
    monkeypatch.setattr(tarfile.TarFile, "format", format)
    long = "long/" * 30 + "name" * 30
    write_tar(
        tmp_path / "mine-1.tar",
        {
            "é.flac": _flac(1600),
            "é.txt": b"a dog\na cat\n",
            f"{long}.flac": _flac(3200),
            f"{long}.json": b'{"text": ["rain"], "tag": 1}',
            "rate.flac": _flac(1600, 44_100),
            "rate.txt": b"x",
            "stereo.flac": _flac(1600, channels=2),
            "stereo.txt": b"x",
            "mute.flac": _flac(1600),
            "broken.flac": b"text" * 100,
            "broken.txt": b"x",
            "cut.flac": _flac(160_000)[:9_000],
            "cut.txt": b"found out when it is decoded",
            "alone.txt": b"x",
        },
    )
    report = reindex(tmp_path, vocab_size=300, progress=False)
    index = ClipIndex.open(tmp_path)
    assert [index.key(clip) for clip in range(len(index))] == ["é", long, "cut"]
    assert [index.read_metadata(clip)["captions"] for clip in range(2)] == [["a dog", "a cat"], ["rain"]]
    assert index.records["samples"].tolist() == [1600, 3200, 160_000]
    assert index.records["captions"].tolist() == [2, 1, 1]
    assert report.rejected == {"wrong_format": 2, "no_captions": 1, "unreadable": 1, "no_audio": 1}
    named = [json.loads(line)["source"] for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert named == [f"mine-1.tar/{name}" for name in ("rate", "stereo", "mute", "broken", "alone")]


def test_a_clip_is_indexed_whose_seek_table_is_longer_than_the_part_of_it_that_is_read(tmp_path: Path) -> None:
    samples = 16_000_000  # a table of 70 kB
    write_tar(tmp_path / "mine.tar", {"a.flac": prepared(np.zeros(samples, np.int16)), "a.txt": b"a long silence"})
    assert reindex(tmp_path, progress=False).rejected == {}
    assert ClipIndex.open(tmp_path).records["samples"].tolist() == [samples]


def test_reindexing_a_malformed_tar_raises(dataset: Path) -> None:
    _cut("shard-000001.tar", 20_000)(dataset)
    with pytest.raises(DatasetError, match=r"shard-000001\.tar: truncated"):
        reindex(dataset, progress=False)


def test_reindexing_without_tars_or_clips_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no \.tar"):
        reindex(tmp_path, progress=False)
    write_tar(tmp_path / "a.tar", {"a.txt": b"x"})
    with pytest.raises(DatasetError, match="no clip can be used"):
        reindex(tmp_path, progress=False)


@pytest.mark.parametrize("text", ['{"captions": ', '{"a":' * 100_000, "\udcff"])
def test_parse_metadata_rejects_what_is_not_json(text: str) -> None:
    with pytest.raises(DatasetError, match=r"clip 3: not JSON"):
        parse_metadata(text.encode("utf-8", "surrogateescape"), "clip 3")
