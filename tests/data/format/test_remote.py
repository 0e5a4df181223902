from __future__ import annotations

import json
import pickle
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from slap_fast.config.loading import config_from_arguments
from slap_fast.config.model import ModelConfig, TextEncoderConfig
from slap_fast.config.recipe import DataConfig
from slap_fast.data.format import remote
from slap_fast.data.format.dataset_files import INDEX_NAME, INFO_NAME
from slap_fast.data.format.index import ClipIndex, DatasetError, StoredClip
from slap_fast.data.format.remote import local_folder
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.data.tokenizer import load_tokenizer, train_tokenizer
from slap_fast.errors import MissingExtraError
from slap_fast.training.build import build_tokenizer
from tests.data.builders import as_lists, make_clip, make_loader, make_tokenizer, write_dataset

URL = "memory://bucket/train"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLAP_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 1e-3)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    index = write_dataset(tmp_path_factory.mktemp("data") / "train", [make_clip(number) for number in range(30)])
    train_tokenizer(["a dog barks", "a bell rings"], 300, index.folder / "tokenizer")
    return index


@pytest.fixture
def bucket(index: ClipIndex) -> Iterator[Any]:
    """The dataset in memory, without the file that is always made locally."""
    files = fsspec.filesystem("memory")
    files.put(str(index.folder) + "/", "/bucket/train/", recursive=True)
    files.rm("/bucket/train/durations.bin")
    yield files
    files.store.clear()


class Fault:
    """Makes the first `times` range requests fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, *, times: int) -> None:
        whole = MemoryFileSystem.cat_file
        self.asked = 0

        def cat_file(files: Any, path: str, start: int | None = None, end: int | None = None, **rest: Any) -> bytes:
            if start is not None:
                self.asked += 1
                if self.asked <= times:
                    raise error
            return whole(files, path, start=start, end=end, **rest)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)


def test_batches_from_a_url_equal_those_from_the_folder(index: ClipIndex, bucket: Any) -> None:
    tokenizer = make_tokenizer()
    expected = [as_lists(batch) for _, batch in make_loader(index, tokenizer)]
    for url in (URL, f"{URL}/", index.folder.as_uri()):
        opened = ClipIndex.open(url)
        assert [as_lists(batch) for _, batch in make_loader(opened, tokenizer)] == expected
        assert as_lists(next(iter(make_loader(pickle.loads(pickle.dumps(opened)), tokenizer)))[1]) == expected[0]
        assert [opened.key(clip) for clip in range(30)] == [f"clip-{clip}" for clip in range(30)]
        assert opened.read_audio(7) == index.read_audio(7)


def test_a_mixture_names_remote_shards_by_url(index: ClipIndex, bucket: Any) -> None:
    mixture = Mixture.open([(URL, 1.0), (index.folder, 2.0)])
    assert mixture.shard_name(0) == f"{URL}/shard-000000.tar"
    remote_clip, local_clip = mixture.read_clips(np.array([3, 33]))
    assert isinstance(remote_clip, StoredClip)
    assert isinstance(local_clip, StoredClip)
    assert bytes(remote_clip.audio) == bytes(local_clip.audio)


def test_the_index_is_copied_once_and_the_tars_never(
    index: ClipIndex, bucket: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ClipIndex.open(URL)
    assert isinstance(opened.records, np.memmap)
    assert cache in opened.folder.parents
    assert {path.name for path in opened.folder.iterdir()} == {INFO_NAME, INDEX_NAME, "durations.bin", "tokenizer"}
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *_, **__: pytest.fail("fetched again"))
    assert ClipIndex.open(URL).folder == opened.folder
    # Another dataset at the same URL gets another cache folder.
    info = json.loads(bucket.cat_file("/bucket/train/dataset.json"))
    bucket.pipe_file("/bucket/train/dataset.json", json.dumps(info | {"name": "new"}).encode())
    monkeypatch.undo()
    monkeypatch.setenv("SLAP_FAST_CACHE", str(cache))
    assert ClipIndex.open(URL).info["name"] == "new"


def rot(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # The record stays plausible, so that only the digest detects the change.
    content[200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: rot(folder / INDEX_NAME),
        lambda folder: (folder / INDEX_NAME).write_bytes(b""),
        lambda folder: (folder / INDEX_NAME).unlink(),
        lambda folder: (folder / INFO_NAME).write_bytes(b"{"),
        lambda folder: (folder / "durations.bin").write_bytes(b"x"),
        lambda folder: rot(folder / "tokenizer" / "tokenizer.json"),
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        lambda folder: folder.with_suffix(".copies.json").write_text("[" * 100_000),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_a_damaged_cache_is_repaired(index: ClipIndex, bucket: Any, damage: Any) -> None:
    damage(ClipIndex.open(URL).folder)
    opened = ClipIndex.open(URL)
    np.testing.assert_array_equal(opened.records, index.records)
    np.testing.assert_array_equal(opened.durations, index.durations)
    assert opened.info == index.info
    for path in (index.folder / "tokenizer").iterdir():
        assert (opened.folder / "tokenizer" / path.name).read_bytes() == path.read_bytes()


def test_files_replaced_at_the_storage_are_copied_again(index: ClipIndex, bucket: Any, tmp_path: Path) -> None:
    ClipIndex.open(URL)
    records = np.array(index.records)
    records["captions"][3] += 1
    np.save(tmp_path / "index.npy", records)
    bucket.pipe_file("/bucket/train/index.npy", (tmp_path / "index.npy").read_bytes())
    bucket.pipe_file("/bucket/train/tokenizer/tokenizer.json", b"new")
    opened = ClipIndex.open(URL)
    np.testing.assert_array_equal(opened.records, records)
    assert (opened.folder / "tokenizer" / "tokenizer.json").read_bytes() == b"new"


def test_without_file_information_a_file_is_copied_once(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.RemoteFolder, "_version", lambda *_: None)
    assert len(ClipIndex.open(URL)) == 30
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *_, **__: pytest.fail("fetched again"))
    assert len(ClipIndex.open(URL)) == 30


def test_an_incomplete_download_is_repeated(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "size", lambda *_: 10**9)
    with pytest.raises(DatasetError, match=rf"{URL}/index.npy: got \d+ of 1000000000 bytes; run"):
        ClipIndex.open(URL)
    monkeypatch.undo()
    assert len(ClipIndex.open(URL)) == 30


def test_a_failed_request_is_retried(index: ClipIndex, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ClipIndex.open(URL)
    fault = Fault(monkeypatch, TimeoutError("slow down"), times=4)
    assert opened.read_audio(5) == index.read_audio(5)
    assert fault.asked == 5


def test_a_storage_that_keeps_failing_raises_after_five_attempts(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ClipIndex.open(URL)
    fault = Fault(monkeypatch, RuntimeError("no route"), times=10**9)
    with pytest.raises(
        DatasetError,
        match=rf"{URL}/shard-000000.tar: cannot read \d+ bytes at 512 \(5 attempts .* RuntimeError: no route",
    ):
        opened.read_audio(0)
    assert fault.asked == 5


def test_a_permanent_error_is_not_retried(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ClipIndex.open(URL)
    fault = Fault(monkeypatch, PermissionError("not yours"), times=10**9)
    with pytest.raises(DatasetError, match="PermissionError: not yours"):
        opened.read_audio(0)
    assert fault.asked == 1


def test_clips_of_a_missing_remote_shard_are_dropped_and_reported(bucket: Any) -> None:
    opened = ClipIndex.open(URL)
    bucket.rm("/bucket/train/shard-000001.tar")
    loader = make_loader(opened, make_tokenizer())
    met = {clip for _, batch in loader for clip in batch.clip_ids.tolist()}
    assert met == {*range(10), *range(20, 30)}
    assert {drop.shard for drop in loader.dropped} == {"shard-000001.tar"}
    assert all(f"{URL}/shard-000001.tar: cannot read" in drop.reason for drop in loader.dropped)


def test_the_requests_of_a_batch_are_concurrent(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ClipIndex.open(URL)
    whole, met = MemoryFileSystem.cat_file, threading.Barrier(8, timeout=60)

    def cat_file(files: Any, path: str, start: int | None = None, end: int | None = None, **rest: Any) -> bytes:
        if start is not None:
            met.wait()
        return whole(files, path, start=start, end=end, **rest)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    clips = opened.read_clips(np.arange(8))
    assert not any(isinstance(clip, DatasetError) for clip in clips)


def test_a_server_without_range_requests_and_a_truncated_tar_have_different_errors(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ClipIndex.open(URL)
    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda files, path, **_: whole(files, path))
    with pytest.raises(DatasetError, match="does not support range requests"):
        opened.read_audio(0)
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda files, path, start, end: whole(files, path, start, end)[:7]
    )
    with pytest.raises(DatasetError, match=r"shard-000000.tar: ends at byte 519, but the index lists"):
        opened.read_audio(0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.rm("/bucket/train/dataset.json"), "dataset.json: missing; give the URL of"),
        (lambda files: files.rm("/bucket/train/index.npy"), "index.npy: cannot be fetched"),
        (lambda files: files.pipe_file("/bucket/train/index.npy", b"text"), "index.npy: truncated"),
        (lambda files: files.rm("/bucket/train/shard-000002.tar"), "shard-000002.tar: cannot be read.*No such file"),
        (lambda files: files.pipe_file("/bucket/train/shard-000002.tar", b"cut"), "shard-000002.tar: 3 bytes, but"),
    ],
)
def test_a_damaged_remote_dataset_raises_and_names_the_file(bucket: Any, damage: Any, message: str) -> None:
    damage(bucket)
    with pytest.raises(DatasetError, match=message):
        ClipIndex.open(URL)


def test_a_storage_without_listing_can_be_read(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ls(*_: Any, **__: Any) -> list[Any]:
        raise NotImplementedError

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    assert len(ClipIndex.open(URL)) == 30


def test_an_unwritable_cache_raises_and_names_the_variable(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLAP_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match="set SLAP_FAST_CACHE to another folder"):
        ClipIndex.open(URL)


def test_unsupported_urls_raise_and_name_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match="nonsense"):
        ClipIndex.open("nonsense://bucket/train")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"s3://bucket/train: .*pip install 'slap-fast\[remote\]'"):
        ClipIndex.open("s3://bucket/train")


def test_the_tokenizer_is_read_from_the_url(index: ClipIndex, bucket: Any) -> None:
    config = config_from_arguments(["recipe=quickstart", f"data.train={URL}"])
    assert [part.folder for part in config.recipe.data.folders] == [URL]
    tokenizer = build_tokenizer(config.recipe.data, config.recipe.model)
    expected = load_tokenizer(index.folder / "tokenizer")
    assert tokenizer("a dog barks")["input_ids"] == expected("a dog barks")["input_ids"]
    bucket.rm("/bucket/train/tokenizer", recursive=True)
    shutil.rmtree(local_folder(URL))
    with pytest.raises(FileNotFoundError, match="needs a tokenizer"):
        build_tokenizer(DataConfig(train=URL), ModelConfig(text=TextEncoderConfig(pretrained=None)))
