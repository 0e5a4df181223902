"""`slap-fast search` and `Library.search`: results in every form, names of any bytes, exports, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slap_fast import cli
from slap_fast.commands.library_arguments import json_line
from slap_fast.library.errors import LibraryError
from slap_fast.library.library import Library
from tests.library.small_library import index_files, sound
from tests.models.saved import tiny_slap

NAMES = [b"a 'quoted\" name.wav", b"new\nline\ttab.wav", "🐕 é.wav".encode(), b"bytes \xff.wav", b"-rf #1 %s.wav"]
ESCAPE = b"\x1b[2J.wav"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short recordings with difficult names, and one of 33 s with six windows."""
    folder = tmp_path_factory.mktemp("search")
    recordings = {name: sound(1.0 + number, 200.0 + 150 * number) for number, name in enumerate([*NAMES, ESCAPE])}
    index_files(
        folder / "sounds", tiny_slap(layers=1), {**recordings, b"long.wav": sound(33.0, 440)}, files=folder / "w"
    )
    return folder / "sounds"


def run(capfdbinary: pytest.CaptureFixture[bytes], *arguments: object) -> tuple[int, bytes, str]:
    code = cli.main(["search", *map(str, arguments)])
    printed = capfdbinary.readouterr()
    return code, printed.out, printed.err.decode()


def test_every_form_holds_the_same_results_and_any_name(
    library: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with Library(library) as opened:
        found = list(opened.search("a dog", top=50))
    assert len({moment.name for moment in found}) == len(NAMES) + 2
    assert [moment.score for moment in found] == sorted((moment.score for moment in found), reverse=True)
    code, table, _ = run(capfdbinary, library, "a dog", "--top", 50)
    assert code == 0
    assert len(table.decode().splitlines()) == len(found)
    assert b"\x1b" not in table
    assert b"\\x1b[2J" in table
    lines = run(capfdbinary, library, "a dog", "--top", 50, "--json")[1].decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {field: getattr(moment, field) for field in ("path", "member", "start", "end", "score", "seconds", "window")}
        for moment in found
    ]
    code, out, err = run(capfdbinary, library, "a dog", "--top", 50, "--csv")
    assert (code, err.count("\n")) == (1, 1)
    assert r"bytes \udcff.wav: its name is no valid utf-8 text, and changed in the CSV; use --json" in err
    assert run(capfdbinary, library, "a dog", "--max-seconds", 2, "--csv")[0] == 0
    text = out.decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [float(row["score"]) for row in rows] == [moment.score for moment in found]
    assert text.count("\r\n") == len(found) + 1
    fields = run(capfdbinary, library, "a dog", "--top", 50, "--paths", "-0")[1].split(b"\0")[:-1]
    assert fields[::3] == [os.fsencode(moment.path) for moment in found]
    code, out, err = run(capfdbinary, library, "a dog", "--top", 50, "--paths")
    assert code == 1
    assert len(out.splitlines()) + err.count("its name does not fit a line of text; use -0") == len(found)


def test_a_csv_on_a_terminal_cannot_control_it_and_a_file_has_the_names(
    library: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    arguments = ["search", str(library), "a dog", "--csv", "--in", str(library.parent / "w" / os.fsdecode(ESCAPE))]
    assert cli.main(arguments) == 0
    assert ESCAPE in capfdbinary.readouterr().out
    reader, terminal = pty.openpty()
    with open(terminal, "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        assert cli.main(arguments) == 0
    shown = os.read(reader, 10_000)
    os.close(reader)
    assert b"\x1b" not in shown
    assert b"\\x1b[2J.wav" in shown


def test_json_is_json_also_where_the_output_is_not_utf8(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Library(library) as opened:
        names = [moment.path for moment in opened.search("a dog", top=50)]
    for encoding in ("ascii", "latin-1"):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
        assert cli.main(["search", str(library), "a dog", "--top", "50", "--json"]) == 0
        sys.stdout.flush()
        assert [json.loads(line)["path"] for line in written.getvalue().decode("ascii").splitlines()] == names
    assert json_line({"path": "\x7f\x9b\u2028\U000e0001"}) == r'{"path": "\u007f\u009b\u2028\udb40\udc01"}'


def test_a_url_takes_the_folders_that_the_library_takes(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    pytest.importorskip("lancedb")
    url = f"file://{tmp_path}/shared"
    with Library(library) as opened:
        opened.export_to(url)
    monkeypatch.chdir(library.parent)
    options = ["a dog", "--top", 50, "--in", "w/long.wav", "--in", "./w/../w/-rf #1 %s.wav", "--json"]
    code, out, _ = run(capfdbinary, url, *options)
    shared = [json.loads(line) | {"score": 0} for line in out.splitlines()]
    local = [json.loads(line) | {"score": 0} for line in run(capfdbinary, library, *options)[1].splitlines()]
    assert code == 0
    assert shared == local
    code, out, err = run(capfdbinary, url, "a dog", "--in", "w", "--in", "x")
    assert (code, out) == (2, b"")
    assert f"{library.parent}/x: the table {url} has no recording there" in err


def test_a_shell_passes_paths_to_a_player_as_documented(
    library: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")
    (player,) = re.findall(r"--paths -0 \|\n\s+(xargs .*)\n", page)
    (tmp_path / "mpv").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (tmp_path / "mpv").chmod(0o755)
    out = run(capfdbinary, library, "a dog", "--paths", "-0", "--top", 3)[1]
    path = f"{tmp_path}:{os.environ['PATH']}"
    played = subprocess.run(["sh", "-c", player], input=out, env=os.environ | {"PATH": path}, capture_output=True)
    assert played.stdout.split(b"\0")[3::4] == out.split(b"\0")[:-1:3]


def test_a_longer_list_begins_with_the_shorter_and_no_results_overlap(library: Path) -> None:
    with Library(library) as opened:
        everything = list(opened.search("rain", top=100))
        for top in range(1, len(everything) + 1):
            assert list(opened.search("rain", top=top)) == everything[:top]
        least = everything[2].score
        assert list(opened.search("rain", min_score=least, top=100)) == everything[:3]
    spans = sorted((m.start, m.end) for m in everything if m.path.endswith("long.wav"))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_sounds_texts_and_negatives_are_combined_as_documented(library: Path) -> None:
    files = library.parent / "w"
    short = files / os.fsdecode(NAMES[0])
    with Library(library) as opened:
        model = opened.model
        (best,) = opened.search(audio=short, top=1)
        assert (best.path, best.start, best.end) == (str(short), 0.0, 1.0)
        assert best.score == pytest.approx(1.0, abs=1e-5)
        query = model.encode_text(["a dog", "rain"]).mean(0) * 2 / 3 + model.encode_audio([short])[0] / 3
        query = query - 0.5 * model.encode_text("bell")[0]
        (mixed,) = opened.search(["a dog", "rain"], audio=short, unlike="bell", folders=[short])
        assert mixed.score == pytest.approx(float(query @ model.encode_audio([short])[0]), abs=1e-5)
        alike = list(opened.search(like=best, top=50))
        assert best not in alike
        assert alike == [moment for moment in opened.search(audio=short, top=50) if moment != best]
        long = list(opened.search("a dog", min_seconds=20.0, top=50))
        assert {moment.path for moment in long} == {str(files / "long.wav")}
        assert all(moment.seconds <= 3 for moment in opened.search("a dog", max_seconds=3.0, top=50))
        with pytest.raises(LibraryError, match="the library has no recording there"):
            opened.search("a dog", folders=["/nowhere"])
        for arguments in (
            {},
            {"text": " "},
            {"unlike": "rain"},
            {"text": "a", "top": 0},
            {"text": "a", "folders": "b"},
        ):
            with pytest.raises(ValueError, match=r"empty|nothing to search for|top is 0|pass a list"):
                opened.search(**arguments)


def test_exports_are_the_samples_of_the_files_and_overwrite_nothing(
    library: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out = tmp_path / "cut"
    assert run(capfdbinary, library, "a dog", "--top", 50, "--export", out)[0] == 0
    with Library(library) as opened:
        found = list(opened.search("a dog", top=50))
    files = sorted(out.iterdir())
    assert len(files) == len(found)
    for moment, path in zip(found, files, strict=True):
        assert re.fullmatch(r"\d{3} [^\n\x1b/]+ 0-00-\d\d\.\d\.wav", path.name)
        path.name.encode()
        samples, rate = soundfile.read(os.fsencode(moment.path), dtype="int16")
        cut, cut_rate = soundfile.read(path, dtype="int16")
        assert cut_rate == rate
        np.testing.assert_array_equal(cut, samples[round(moment.start * rate) : round(moment.end * rate)])
    assert run(capfdbinary, library, "a dog", "--top", 1, "--export", out)[0] == 0
    assert len(list(out.iterdir())) == len(found) + 1
    code, _, err = run(capfdbinary, library, "a dog", "--top", 50, "--paths", "--export", out)
    assert code == 1
    assert err.endswith(f"{out}: {len(found)} of {len(found)} moments\n")


def test_files_that_are_gone_or_changed_are_named(
    library: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    shutil.copytree(library, tmp_path / "copy")
    path = library.parent / "w" / "long.wav"
    kept = path.read_bytes()
    try:
        path.write_bytes(kept + b"  ")
        options = ["--in", path, "--export", tmp_path / "cut", "--top", 1]
        code, out, err = run(capfdbinary, library, "a dog", *options)
        assert (code, len(out.splitlines())) == (1, 1)
        assert "long.wav: it has changed since it was indexed" in err
        path.unlink()
        code, _, err = run(capfdbinary, library, "a dog", *options)
        assert code == 1
        assert "missing_file" in err or "long.wav" in err
        code, out, err = run(capfdbinary, library, "a dog", "--in", path, "--top", 1)
        assert code == 0
        assert f"gone: {path}; to drop it: slap-fast index" in err
        assert list((tmp_path / "cut").iterdir()) == []
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a TEXT to look for, or --audio FILE"),
        ([" "], "a TEXT is empty"),
        (["a\udcff"], "is not valid UTF-8"),
        (["a", "--not", ""], "a --not is empty"),
        (["--audio", "none.wav"], "--audio none.wav: no such file"),
        (["a", "--in", ""], "--in is empty"),
        (["a", "--in", "/nowhere"], "/nowhere: the library has no recording there"),
        (["a", "--min-seconds", "3", "--max-seconds", "2"], "--max-seconds 2 is below --min-seconds 3"),
        (["a", "--min-score", "nan"], "--min-score is not a number"),
        (["a", "-0"], "-0 is for --paths"),
    ],
)
def test_bad_arguments_are_errors_and_nothing_found_is_1(
    library: Path, capfdbinary: pytest.CaptureFixture[bytes], arguments: list[str], message: str
) -> None:
    code, out, err = run(capfdbinary, library, *arguments)
    assert (code, out) == (2, b"")
    assert message in err
    code, out, err = run(capfdbinary, library, "a dog", "--min-score", "2", "--export", "cut")
    assert (code, out, err) == (1, b"", f"{library}: nothing found\n")


def test_the_example_of_the_docs_runs(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    (tmp_path / "sounds").symlink_to(library)
    soundfile.write(tmp_path / "query.wav", sound(2.0, 300), 16_000)
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    names = {"print": lambda *values: printed.append(" ".join(map(str, values)))}
    exec(example.replace('["recordings"]', f"[{str(library.parent / 'w')!r}]"), names)
    assert [line for line in printed if line.startswith("cut/001 ")] != []
