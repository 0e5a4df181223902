"""Everything in a source of `prepare` is kept, merged into another item, or listed in `report.jsonl`."""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slap_fast.audio.formats import AUDIO_EXTENSIONS
from slap_fast.cli import main
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare import PrepareReport, prepare
from slap_fast.data.prepare.source import ClipItem, GeneratedSource, Rejection
from slap_fast.data.prepare.tar_source import TarSource


def _wav(frequency: float = 440.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(np.arange(1600) * frequency / 2546), 16_000, format="WAV")
    return buffer.getvalue()


_WAV = _wav()
_SETTINGS = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)


def _prepared(source: Any, out: Path) -> tuple[PrepareReport, dict[str, str], set[str]]:
    """The report, the reasons of what was left out by source, and the sources of the clips."""
    report = prepare(source, out, workers=0, progress=False)
    rows = [json.loads(line) for line in (out / "report.jsonl").read_bytes().splitlines()]
    left_out = {row["source"]: row["reason"] for row in rows if not row["kept"]}
    assert report.seen == report.clips + report.merged + sum(report.rejected.values())
    assert sum(report.rejected.values()) == sum(not row["kept"] for row in rows)
    assert sum(report.noted.values()) == sum(row["kept"] for row in rows)
    index = ClipIndex.open(out)
    return report, left_out, {index.read_metadata(clip)["source"] for clip in range(len(index))}


_NAMES = ["a", "b.2", "caf\u00e9", "cafe\u0301", ".hidden", "mod\udce0", "x y"]
_EXTENSIONS = [".wav", ".WAV", ".m4a", ".txt", ".json", ".TXT", ".png", "", ".webm"]
_CONTENTS = [_WAV, b"", b"a caption", b'{"caption": "a tone"}', b"\xff\xfe", _WAV[:900]]
_HEARD = AUDIO_EXTENSIONS | {".m4a", ".webm"}
_FOLDERS = ["", "one/", "one/two/", ".git/", "d\u00e9/"]


@_SETTINGS
@given(
    files=st.lists(
        st.tuples(*(st.sampled_from(values) for values in (_FOLDERS, _NAMES, _EXTENSIONS)), st.sampled_from(_CONTENTS)),
        min_size=1,
        max_size=12,
    ),
    links=st.lists(
        st.tuples(*(st.sampled_from(values) for values in (_FOLDERS, _FOLDERS, ["link", "one/link"]))), max_size=2
    ),
)
def test_no_file_of_a_folder_is_unaccounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[str, str, str, bytes]],
    links: list[tuple[str, str, str]],
) -> None:
    root = tmp_path_factory.mktemp("account")
    folder = root / "in"
    paths = {"first.wav": _WAV, "first.txt": b"a tone"} | {
        place + name + extension: content for place, name, extension, content in files
    }
    for path, content in paths.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    for place, target, name in links:
        if (folder / target).is_dir() and (folder / place / name).parent.is_dir():
            (folder / place / name).unlink(missing_ok=True)
            (folder / place / name).symlink_to(folder / target)
    report, left_out, kept = _prepared(folder, root / "out")
    heard = {
        _stem(source) for source in [*kept, *left_out] if _extension(source) in AUDIO_EXTENSIONS | {".m4a", ".webm"}
    }
    for path in paths:
        if path.startswith(".git/"):
            assert left_out[".git/"] == "hidden"
        elif path not in kept and path not in left_out:
            # Sidecars of audio that is itself kept or reported.
            assert _extension(path) in (".txt", ".json"), path
            assert _stem(path) in heard, path
    assert report.seen >= len([path for path in paths if not path.startswith(".git/")])


_PATHS = ["good.wav", "./good.wav", "other.wav", "gone.wav", "caf\u00e9.wav", "cafe\u0301.wav", "sub\\deep.wav"]
_PATHS += ["old.m4a", "broken.wav", "", "good.wav,too,many"]


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _stem(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(path)[0])


@_SETTINGS
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(_PATHS),
            st.sampled_from(["a tone", "another", ""]),
        ),
        min_size=1,
        max_size=15,
    )
)
def test_no_row_of_a_table_is_unaccounted_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("account")
    (folder / "sub").mkdir()
    for number, name in enumerate(["good.wav", "other.wav", "first.wav", "cafe\u0301.wav", "sub/deep.wav"]):
        (folder / name).write_bytes(_wav(440.0 + number))
    (folder / "old.m4a").write_bytes(b"\0\0\0\x1cftypM4A ")
    (folder / "broken.wav").write_bytes(_WAV[:900])
    lines = ["path,caption", "first.wav,a tone", *(f"{path},{caption}" for path, caption in rows)]
    (folder / "m.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report, left_out, kept = _prepared(folder / "m.csv", folder / "out")
    assert report.seen == 1 + len(rows)
    same = {"./good.wav": "good.wav", "cafe\u0301.wav": "caf\u00e9.wav"}
    named = {same.get(source, source) for source in [*kept, *left_out]}
    for number, (path, _) in enumerate(rows):
        assert same.get(path, path) in named or f"m.csv:{number + 3}" in left_out, path
    assert not {"gone.wav", "old.m4a", "broken.wav"} & kept


_MEMBERS = ["dog.1.flac", "dog.2.wav", "dog.txt", "dog.json", "cat.wav", "cat.cls", "cat.m4a", "cow.m4a", "a/.x.wav"]
_MEMBERS += ["mod\udce0.wav", "mod\udce0.txt", "x" * 120 + ".wav"]


@_SETTINGS
@given(
    members=st.lists(
        st.tuples(st.sampled_from(_MEMBERS), st.sampled_from(["file", "link", "hard", "sparse", "fifo", "folder"])),
        max_size=12,
    ),
    beside=st.sampled_from(["", "notes.md", "b.tar.gz"]),
    joined=st.booleans(),
)
def test_no_member_of_a_tar_is_unaccounted_for(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str]], beside: str, joined: bool
) -> None:
    folder = tmp_path_factory.mktemp("account")
    (folder / "in").mkdir()
    tar = folder / "in" / "a.tar"
    members = [("first.wav", "file"), ("first.txt", "file"), *members]
    data = b"".join(_tar(part) for part in ([members[:3], members[3:]] if joined else [members]))
    tar.write_bytes(data)
    if beside:
        (folder / "in" / beside).write_bytes(b"x")
    report, left_out, kept = _prepared(folder / "in", folder / "out")
    found = [(name, kind) for name, kind in members if kind != "folder"]
    assert report.seen == len(found) + bool(beside)
    assert not beside or left_out[beside] == "beside_tars"
    for name, kind in found:
        named = f"a.tar/{name}" in kept or f"a.tar/{name}" in left_out
        if kind == "file" and name.endswith((".txt", ".json")):
            key = f"a.tar/{name.partition('.')[0]}"
            named = named or any(source == key or source.startswith(f"{key}.") for source in [*kept, *left_out])
        assert named, (name, kind)


def _tar(members: list[tuple[str, str]]) -> bytes:
    buffer = io.BytesIO()
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kinds.get(kind, tarfile.REGTYPE)
            content = b""
            if kind in ("file", "sparse"):
                content = {"wav": _WAV, "txt": b"a tone", "json": b'"a tone"'}.get(name.rpartition(".")[2], b"x")
            info.size = len(content)
            if kind == "sparse":
                info.pax_headers = {"GNU.sparse.map": f"0,{len(content)}", "GNU.sparse.size": str(10 * len(content))}
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_unusable_members_of_a_tar_are_reported_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        _tar(
            [(name, "file") for name in ("dog.1.wav", "dog.2.wav", "dog.txt", "dog.cls", "cow.mid", "cow.txt")]
            + [("cat.wav", "sparse"), ("cat.txt", "file"), ("l.wav", "hard")]
        )
    )
    source = TarSource([tmp_path / "a.tar"])
    items = {item.origin.removeprefix("a.tar/"): item for item in source}
    reasons = {origin: item.reason for origin, item in items.items() if isinstance(item, Rejection)}
    assert reasons == {
        "dog.2.wav": "same_key",
        "dog.cls": "unused_member",
        "cow": "no_audio",
        "cow.mid": "unused_member",
        "cat": "no_audio",
        "cat.wav": "no_content",
        "l.wav": "no_content",
    }
    assert source.seen == sum(item.seen for item in items.values()) == 9
    same_key, sparse = items["dog.2.wav"], items["cat.wav"]
    assert isinstance(same_key, Rejection)
    assert "dog.1.wav: a WebDataset key ends at the first dot" in same_key.detail
    assert isinstance(sparse, Rejection)
    assert "tar -S" in sparse.detail


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    for place in ("in/one", "far"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.wav").write_bytes(_WAV)
        (tmp_path / place / "x.txt").write_text("a tone")
    (tmp_path / "in" / "a-link").symlink_to(tmp_path / "in" / "one")
    (tmp_path / "in" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "one" / "up").symlink_to(tmp_path / "in")
    _, left_out, kept = _prepared(tmp_path / "in", tmp_path / "out")
    assert kept == {"one/x.wav", "far/x.wav"}
    assert left_out == {"a-link/": "same_folder", "one/up/": "same_folder"}


def test_names_in_other_encodings_and_unicode_forms_are_read(tmp_path: Path) -> None:
    source = tmp_path / "in\udce0"
    source.mkdir()
    latin = os.fsencode(source) + b"/mod\xe0"
    for name, content in {b".wav": _WAV, b".txt": b"a tone"}.items():
        with open(latin + name, "wb") as file:
            file.write(content)
    (source / "cafe\u0301.wav").write_bytes(_WAV)
    (source / "caf\u00e9.TXT").write_text("a second tone")
    report, left_out, kept = _prepared(source, tmp_path / "out\udce0")
    assert (report.clips, report.captions, report.merged, left_out) == (2, 2, 2, {})
    assert kept == {"mod\udce0.wav", "cafe\u0301.wav"}
    for out in ("out\udce0", "other\udce0"):
        options = ["--vocab-size", "0", "--workers", "0", "--quiet"]
        assert main(["prepare", str(source), "--out", str(tmp_path / out), *options]) == 0


def test_a_source_that_loses_an_item_raises(tmp_path: Path) -> None:
    class Losing(GeneratedSource):
        def __iter__(self) -> Iterator[ClipItem | Rejection]:
            yield Rejection("a", "no_captions", "x")
            self.seen = 2

    with pytest.raises(DatasetError, match=r"2 files, rows or members were seen, but 0 kept \+ 0 merged \+ 1 left"):
        prepare(Losing([], "losing", {}), tmp_path, workers=0, progress=False)


def test_clipped_and_truncated_audio_is_noted_and_reported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    loud = io.BytesIO()
    soundfile.write(loud, np.full(1600, 1.5, np.float32), 16_000, format="WAV", subtype="FLOAT")
    scaled = io.BytesIO()
    soundfile.write(scaled, np.full(1600, 9000.0, np.float32), 16_000, format="WAV", subtype="FLOAT")
    hot = np.tile(np.array([1.5, 0.0, 0.0], np.float32), 1600)
    soundfile.write(tmp_path / "in" / "hot.wav", hot, 16_000, subtype="FLOAT")
    for name, content in {"scaled": scaled.getvalue(), "cut": _WAV[:-90], "loud": loud.getvalue()}.items():
        (tmp_path / "in" / f"{name}.wav").write_bytes(content)
    for name in ("hot", "scaled", "cut", "loud"):
        (tmp_path / "in" / f"{name}.txt").write_text("a tone")
    report, left_out, kept = _prepared(tmp_path / "in", tmp_path / "out")
    assert left_out == {"scaled.wav": "out_of_range", "loud.wav": "out_of_range"}
    assert kept == {"hot.wav", "cut.wav"}
    assert report.noted == {"clipped": 1, "cut_short": 1}
    assert "1600 of 4800 samples were beyond full scale" in (tmp_path / "out" / "report.jsonl").read_text()
