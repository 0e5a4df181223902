from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slap_fast.audio.flac_encoder import Flac
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.shard_writer import KeyRegistry, ShardWriter, encode_metadata, tar_key
from slap_fast.data.format.tar_members import TarError, iterate_members, split_key

_ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)


def _flac(size: int, seed: int = 0) -> Flac:
    return Flac(np.random.default_rng(seed).bytes(size), size, samples=size * 2, silent=False)


@given(_ANY_TEXT)
def test_a_key_is_safe_whatever_the_name(name: str) -> None:
    key = tar_key(name)
    assert re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", key)
    assert len(key) <= 90
    assert split_key(f"{key}.flac") == (key, "flac")


@given(st.lists(_ANY_TEXT, unique=True, max_size=20))
def test_different_names_get_different_keys(names: list[str]) -> None:
    assert len({tar_key(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["dog", "-0Gj8-vB1q4_30", "animals/dog_2", "7"])
def test_a_safe_name_is_its_own_key(name: str) -> None:
    assert tar_key(name) == name


@pytest.mark.parametrize(
    ("name", "start"),
    [("forêt.v2", "foret_v2-"), ("../../etc/passwd", "_/_/etc/passwd-"), ("/abs/a", "abs/a-"), ("犬", "clip-")],
)
def test_an_unsafe_name_stays_readable(name: str, start: str) -> None:
    assert re.fullmatch(re.escape(start) + "[0-9a-f]{12}", tar_key(name))


@given(st.lists(st.sampled_from(["a", "a-2", "a-3", "b" * 90, "b.c"]), max_size=40))
def test_repeated_names_get_unique_keys_that_are_deterministic(names: list[str]) -> None:
    first, second = KeyRegistry(), KeyRegistry()
    claimed = [first.claim(name) for name in names]
    keys = [key for key, _ in claimed]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 90 for key in keys)
    assert claimed == [second.claim(name) for name in names]
    assert all(renamed == (key != tar_key(name)) for name, (key, renamed) in zip(names, claimed, strict=True))


def test_tarfile_reads_a_shard_and_the_records_match(tmp_path: Path) -> None:
    shard = ShardWriter(tmp_path / "shard.tar", 7)
    flacs = [_flac(size, size) for size in (1, 511, 512, 513, 20_000)]
    for position, flac in enumerate(flacs):
        size = shard.size_with(flac, b"{}")
        shard.add(f"clip{position}", flac, b"{}", captions=position + 1)
        assert shard.size == size
    records = shard.seal()
    assert not shard.path.exists()
    shard.commit()
    assert shard.path.stat().st_size == size
    data = shard.path.read_bytes()
    with tarfile.open(shard.path) as tar:
        assert tar.getnames() == [f"clip{i}.{e}" for i in range(5) for e in ("flac", "json")]
        assert all((member.mtime, member.uid, member.gid) == (0, 0, 0) for member in tar)
        for record, flac, name in zip(records, flacs, tar.getnames()[::2], strict=True):
            assert tar.extractfile(name).read() == flac.audio  # type: ignore[union-attr]
            assert data[record["audio_offset"] :][: record["audio_size"]] == flac.audio
            assert data[record["meta_offset"] :][: record["meta_size"]] == b"{}"
    assert records["shard"].tolist() == [7] * 5
    assert records["captions"].tolist() == [1, 2, 3, 4, 5]
    assert records["samples"].tolist() == [flac.samples for flac in flacs]


def test_a_large_clip_is_copied_from_its_file_which_is_then_deleted(tmp_path: Path) -> None:
    content = np.random.default_rng(3).bytes(3_000_001)
    (tmp_path / "spill").write_bytes(content)
    shard = ShardWriter(tmp_path / "shard.tar", 0)
    shard.add("clip", Flac(tmp_path / "spill", len(content), 5, False), b"{}", 1)
    shard.seal()
    shard.commit()
    assert not (tmp_path / "spill").exists()
    with tarfile.open(shard.path) as tar:
        assert tar.extractfile("clip.flac").read() == content  # type: ignore[union-attr]


def test_a_discarded_tar_leaves_nothing(tmp_path: Path) -> None:
    shard = ShardWriter(tmp_path / "shard.tar", 0)
    shard.add("clip", _flac(100), b"{}", 1)
    shard.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_error_names_the_tar_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / ".shard.tar.tmp").symlink_to("/dev/full")
    shard = ShardWriter(tmp_path / "shard.tar", 0)
    with pytest.raises(DatasetError, match=r"shard\.tar: cannot write: No space left.*run the same command again"):
        shard.add("clip", _flac(100), b"{}", 1)
    shard.discard()


def test_any_metadata_is_stored_as_valid_json() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5], "c": "f\udce9", "d": Path("x"), "e": {"f": None}}
    assert json.loads(encode_metadata(value)) == {
        "a": "nan",
        "b": ["inf", 1.5],
        "c": "f\udce9",
        "d": "x",
        "e": {"f": None},
    }


def _tar(path: Path, names: list[str]) -> bytes:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            (path.parent / "member").write_bytes(name.encode() * 100)
            info.size = len(name.encode()) * 100
            with open(path.parent / "member", "rb") as file:
                tar.addfile(info, file)
    return path.read_bytes()


def test_members_of_foreign_tars_are_found_including_long_names(tmp_path: Path) -> None:
    names = ["a.flac", "x" * 150 + ".json", "é/ü.wav", "d/" * 80 + "b.txt"]
    data = _tar(tmp_path / "a.tar", names)
    members = list(iterate_members(tmp_path / "a.tar"))
    assert [member.name for member in members] == names
    for member in members:
        assert data[member.offset : member.offset + member.size] == member.name.encode() * 100


@pytest.mark.parametrize("damage", ["cut in a member", "cut in a header", "damaged header", "appended text"])
def test_good_members_before_damage_are_found_and_the_damage_raises(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.tar"
    data = bytearray(_tar(path, ["a.flac", "a.json", "b.flac"]))
    second = 512 + 1024
    if damage == "cut in a member":
        data = data[: second + 512 + 100]
    elif damage == "cut in a header":
        data = data[: second + 100]
    elif damage == "damaged header":
        data[second + 5] ^= 0xFF
    else:
        data = data[:second] + b"hello" * 1000
    path.write_bytes(data)
    members = iterate_members(path)
    assert next(members).name == "a.flac"
    with pytest.raises(TarError, match=r"truncated|malformed"):
        next(members)


@pytest.mark.parametrize("content", [b"", b"text\n" * 1000, b"\x1f\x8b\x08\x00" + b"\1" * 600])
def test_a_file_that_is_not_a_tar_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(TarError, match="malformed or compressed"):
        list(iterate_members(tmp_path / "a.tar"))
    with pytest.raises(TarError, match="missing"):
        list(iterate_members(tmp_path / "b.tar"))
