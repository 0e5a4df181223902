"""`slap-fast duplicates` and `slap-fast cluster`: output, exit codes, errors."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slap_fast import SLAP, cli
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.library import clusters
from slap_fast.library.clusters import MIN_SIZE
from slap_fast.library.database import Database, WindowRow
from slap_fast.library.duplicates import LENGTH_RATIO, THRESHOLD
from slap_fast.library.library import Library
from tests.models.builders import TINY

Make = Callable[[Sequence[tuple[str, int]]], Path]
EVIL = os.fsdecode(b"/s/a\n\x1b[31m\xff,\"'.wav")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["a dog barks at a bell", "rain falls on the roof"], 300)
    torch.manual_seed(0)
    built = SLAP(replace(TINY, text=replace(TINY.text, vocab_size=len(tokenizer))))
    built.tokenizer = tokenizer
    folder = tmp_path_factory.mktemp("model")
    built.save_pretrained(folder)
    return folder


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Make:
    """Makes a library of paths with the number of a sound: those of one sound are nearly the same, -1 is far."""

    def build(recordings: Sequence[tuple[str, int]]) -> Path:
        Library(tmp_path / "sounds", model=model).close()
        random = np.random.default_rng(0)
        with Database(tmp_path / "sounds", write=True) as database:
            for number, (path, sound) in enumerate(recordings):
                center = np.eye(32, dtype=np.float32)[sound] if sound >= 0 else np.full(32, -1, np.float32)
                vector = center + 0.01 * random.normal(size=32).astype(np.float32)
                vector /= np.linalg.norm(vector)
                recording = database.begin_recording(
                    path, "", size=10, mtime_ns=number * 10**9, digest=number.to_bytes(16, "big")
                )
                window = WindowRow(0.0, 5.0, True, vector)
                database.complete_recording(recording, [window], seconds=5.0, embedding=vector)
        return tmp_path / "sounds"

    return build


def test_duplicates_are_listed_as_table_json_and_csv(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    library = make([("/s/first.wav", 0), ("/s/other.wav", 1), (EVIL, 0)])
    assert cli.main(["duplicates", str(library), "--quiet"]) == 0
    table = capsys.readouterr()
    assert [line.split()[0] for line in table.out.splitlines()] == ["group", "1", "1"]
    assert table.out.splitlines()[1].endswith("oldest, longest  /s/first.wav")
    assert table.out.splitlines()[2].endswith(r"/s/a\n\x1b[31m\udcff," "\"'.wav")
    assert table.err == f"{library}: of 3 recordings, 1 is a copy of another\n"

    assert cli.main(["duplicates", str(library), "--json", "--quiet"]) == 0
    line = capsys.readouterr().out
    assert "\x1b" not in line
    content = json.loads(line)
    assert [one["path"] for one in content["recordings"]] == ["/s/first.wav", EVIL]
    assert [one["oldest"] for one in content["recordings"]] == [True, False]
    assert content["recordings"][1]["similarity"] > 0.98

    assert cli.main(["duplicates", str(library), "--csv", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert r"a\n\x1b[31m\udcff," "\"'.wav: its name is no valid" in printed.err
    rows = list(csv.DictReader(io.StringIO(printed.out, newline="")))
    assert [(row["group"], row["path"]) for row in rows] == [
        ("1", "/s/first.wav"),
        ("1", EVIL.encode("utf-8", "backslashreplace").decode()),
    ]

    assert cli.main(["duplicates", str(library), "--identical"]) == 1
    nothing = capsys.readouterr()
    assert (nothing.out, nothing.err) == ("", f"{library}: of 3 recordings, none is a copy of another\n")


def test_clusters_are_listed_as_table_json_csv_and_map(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make([*((f"/s/{number}.wav", number % 2) for number in range(12)), (EVIL, -1)])
    (tmp_path / "words.txt").write_text("rain\na dog barks\n")
    common = ["cluster", str(library), "--vocabulary", str(tmp_path / "words.txt")]
    assert cli.main([*common, "--plot", str(tmp_path / "map.png")]) == 0
    table = capsys.readouterr()
    assert len(table.out.splitlines()) == 3
    assert table.err.startswith(f"{library}: 2 clusters of 12 recordings; 1 unclustered\n")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    assert cli.main([*common, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["cluster"], len(line["recordings"])) for line in lines] == [(0, 6), (1, 6), (-1, 1)]
    assert {line["name"].split(",")[0] for line in lines[:2]} <= {"rain", "a dog barks", "unnamed"}
    assert lines[0]["name"] != lines[1]["name"]
    assert lines[2]["recordings"][0]["path"] == EVIL

    monkeypatch.setattr(clusters, "MAX_MAPPED", 12)
    assert cli.main([*common, "--csv"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("its name is no valid") == 1
    assert "a sample of 12 recordings; the other 1 are not on it and have no position in the CSV\n" in printed.err
    rows = list(csv.DictReader(io.StringIO(printed.out, newline="")))
    assert list(rows[0]) == ["path", "member", "cluster", "name", "probability", "x", "y"]
    assert [(row["path"], row["cluster"], row["name"]) for row in rows if row["cluster"] == "-1"] == [
        (EVIL.encode("utf-8", "backslashreplace").decode(), "-1", "unclustered")
    ]
    assert sum(row["x"] != "" and np.isfinite(float(row["x"])) for row in rows) == 12


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_small_library_gets_a_message_and_exit_code_1(
    count: int, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    library = make([(f"/s/{number}.wav", number) for number in range(count)])
    assert cli.main(["duplicates", str(library), "--quiet"]) == 1
    assert capsys.readouterr().err == f"{library}: of {count} recordings, none is a copy of another\n"
    assert cli.main(["cluster", str(library)]) == 1
    assert capsys.readouterr().err == f"{library}: no clusters: too few recordings ({count}) for --min-size 5\n"


def test_invalid_arguments_are_reported_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "library.sqlite").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "a.wav").touch()
    cases = [
        (["duplicates", "nowhere"], "nowhere: no such folder; make one with `slap-fast index nowhere --model MODEL"),
        (["cluster", "empty"], "empty: no library in this folder; make one with `slap-fast index empty --model MODEL"),
        (
            ["cluster", "recordings"],
            "recordings: no library in this folder; if it has recordings, make one of them in a new folder: "
            "`slap-fast index LIBRARY --model MODEL recordings`",
        ),
        (["cluster", "model"], "model: this is a model, not a library"),
        (["duplicates", "library", "--threshold", "nan"], "--threshold is nan; it must be above 0 and at most 1"),
        (["duplicates", "library", "--length-ratio", "0.5"], "--length-ratio is 0.5; it must be at least 1"),
        (["cluster", "library", "--min-size", "1"], "--min-size is 1; it must be at least 2"),
        (["cluster", "library", "--plot", "map.jpg"], "--plot map.jpg: the map is a PNG file"),
        (["cluster", "library", "--vocabulary", "none.txt"], "--vocabulary none.txt: no such file"),
    ]
    code = (
        "import json, sys; from slap_fast import cli\n"
        "for arguments in json.load(sys.stdin):\n"
        "    assert cli.main(arguments) == 2, arguments\n"
        "    assert not {'torch', 'transformers', 'sklearn', 'matplotlib', 'faiss'} & sys.modules.keys(), arguments\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([arguments for arguments, _ in cases]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for line, (arguments, message) in zip(result.stderr.splitlines(), cases, strict=True):
        assert line.startswith(f"slap-fast {arguments[0]}: {message}")


def test_the_defaults_of_the_commands_are_those_of_the_functions() -> None:
    parser = cli.build_parser()
    duplicates = parser.parse_args(["duplicates", "sounds"])
    assert (duplicates.threshold, duplicates.length_ratio) == (THRESHOLD, LENGTH_RATIO)
    assert parser.parse_args(["cluster", "sounds"]).min_size == MIN_SIZE
