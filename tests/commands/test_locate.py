"""`slap-fast locate`: events of a recording, their files and plot, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image

from slap_fast import cli
from slap_fast.evaluation.localization_scores import score_localization
from slap_fast.inference.audio_inputs import AudioInput
from slap_fast.inference.locate.background import BACKGROUND, QueryScorer
from slap_fast.inference.locate.events import EventRule, active_columns, event_columns, find_events, smoothed_curve
from slap_fast.inference.locate.finding import locate
from slap_fast.inference.locate.growing_rows import GrowingRows
from slap_fast.inference.locate.label_files import as_audacity, as_raven
from slap_fast.inference.locate.overview import MAX_ROWS, MelOverview
from slap_fast.models.slap import SLAP
from slap_fast.ops import MelConfig, log_mel
from tests.models.saved import tiny_slap

RATE = 16_000


@pytest.fixture(scope="module")
def model() -> SLAP:
    model = tiny_slap()
    model.config = replace(model.config, max_duration=2.0)
    return model


@pytest.fixture(scope="module")
def folder(model: SLAP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)


def test_curves_of_a_stream_are_those_of_the_model(model: SLAP) -> None:
    clip = noise(7.3)
    found = locate(model, np.array_split(clip, 9), ["a bell", "a dog barks"])
    for number, query in enumerate(found.queries):
        times, similarity = model.similarity_over_time((clip, RATE), query)
        np.testing.assert_allclose(found.similarity[:, number], similarity.numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.times, times.numpy(), rtol=1e-6)
    assert found.seconds == 7.3
    whole = locate(model, [clip], ["a bell"])
    np.testing.assert_allclose(whole.probability[:, 0], found.probability[:, 0], rtol=0, atol=1e-6)


def test_a_probability_is_the_softmax_against_background_that_means_something_else(model: SLAP) -> None:
    queries = ["rain", "a dog barks"]  # the first is a text of the background itself
    scorer = QueryScorer.of(model, queries, ["a bell"])
    assert not scorer.competing[0, BACKGROUND.index("rain")]
    assert bool(scorer.competing[:, -1].all())
    columns = model.encode_audio([noise(1.0)], sampling_rate=RATE, dense=True)[0]
    for number, query in enumerate(queries):
        others = [text for text, used in zip((*BACKGROUND, "a bell"), scorer.competing[number], strict=True) if used]
        logits = model.logit_scale().detach() * columns @ model.encode_text([query, *others]).T
        np.testing.assert_allclose(scorer.probability(columns.numpy())[:, number], logits.softmax(1)[:, 0], atol=1e-5)


def test_events_are_runs_above_the_threshold_with_gaps_closed_and_short_ones_left_out() -> None:
    curve = np.array([0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1], np.float32)
    rule = EventRule(smooth=0, max_gap=0.1, min_duration=0.2)
    assert event_columns(curve, 0.1, rule, 1.8) == [(2, 7), (15, 18)]
    assert event_columns(curve, 0.1, replace(rule, max_gap=0), 1.8) == [(2, 4), (5, 7), (15, 18)]
    assert event_columns(curve, 0.1, replace(rule, smooth=0.3, max_gap=0, min_duration=0), 1.8) == [(2, 7), (15, 18)]
    *_, last = find_events("a", curve, curve / 2, column_seconds=0.1, seconds=1.75, rule=rule)
    assert (last.start, last.end, last.probability, last.similarity) == (1.5, 1.75, 1.0, 0.5)
    # Ten milliseconds of the last column are of the recording: an event of 0.11 s there is shorter than 0.2 s.
    end = np.array([0, 1, 1], np.float32)
    for seconds, count in ((0.21, 0), (0.3, 1)):
        assert len(find_events("a", end, end, column_seconds=0.1, seconds=seconds, rule=rule)) == count
        assert active_columns(end, 0.1, rule, seconds).sum() == 2 * count
    for nothing in (np.zeros(9, np.float32), np.zeros(0, np.float32)):
        assert event_columns(nothing, 0.1, rule, 0.9) == []


def test_a_long_median_is_computed_in_parts() -> None:
    curve = np.random.default_rng(0).uniform(size=2**20 + 7).astype(np.float32)
    found = smoothed_curve(curve, 9)
    padded = np.pad(curve, 4, mode="edge")
    expected = np.median(np.stack([padded[at : at + len(curve)] for at in range(9)]), axis=0)
    assert np.array_equal(found, expected)


@given(
    curve=st.lists(st.floats(0, 1, width=32), max_size=60),
    threshold=st.floats(0.01, 0.99),
    gap=st.floats(0, 2),
    shortest=st.floats(0, 2),
    smooth=st.floats(0, 2),
)
def test_events_are_apart_and_long_enough(
    curve: list[float], threshold: float, gap: float, shortest: float, smooth: float
) -> None:
    rule = EventRule(smooth=smooth, threshold=threshold, max_gap=gap, min_duration=shortest)
    seconds = max(0.0, 0.16 * len(curve) - 0.1)  # of the last column, 60 ms are of the recording
    runs = event_columns(np.array(curve, np.float32), 0.16, rule, seconds)
    for first, end in runs:
        assert 0 <= first < end <= len(curve)
        assert min(seconds, end * 0.16) - first * 0.16 >= shortest - 1e-6
    for (_, end), (first, _) in zip(runs, runs[1:], strict=False):  # noqa: RUF007 - a list of at most one has no pair
        assert (first - end) * 0.16 > gap - 1e-6


def test_rows_that_are_added_in_pieces_are_all_there() -> None:
    pieces = np.split(np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32), [0, 1, 4095, 4097, 4200])
    rows = GrowingRows(2)
    assert rows.all().shape == (0, 2)
    for piece in pieces:
        rows.add(piece)
    assert np.array_equal(rows.all(), np.concatenate(pieces))


def test_an_overview_is_bounded_and_keeps_the_loudest_of_each_stretch() -> None:
    config = MelConfig()
    overview = MelOverview(config)
    samples = torch.from_numpy(noise(110.0))
    samples[50 * RATE : 51 * RATE] *= 50
    for begin in range(0, 110, 10):
        overview.add((samples[begin * RATE : (begin + 10) * RATE], slice(None)))
    rows = overview.rows()
    assert overview.merged == 4
    assert MAX_ROWS / 2 < len(rows) <= MAX_ROWS
    frames = [log_mel(part, torch.tensor([0, len(part)]), config) for part in samples.split(10 * RATE)]
    expected = torch.cat(frames).numpy()
    assert rows.max() == expected.max()
    whole = len(expected) // 4 * 4
    assert np.array_equal(rows[: whole // 4], expected[:whole].reshape(-1, 4, config.n_mels).max(1))


def test_files_of_every_format_hold_the_events(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = os.fsdecode(os.fsencode(tmp_path) + b'/-a "b"\n#1  100%\r \xff.wav')
    soundfile.write(os.fsencode(recording), noise(9.0), RATE)
    query = 'a "bell",\ta dog'
    files = [tmp_path / name for name in ("e.csv", "e.json", "e.txt", "e.Selections.txt")]
    options = [argument for file in files for argument in ("--out", str(file))]
    plot = tmp_path / "new" / "e.png"
    arguments = [
        "locate",
        str(folder),
        recording,
        query,
        "a dog barks",
        "--threshold",
        "0.02",
        "--not",
        "a cat",
        *options,
    ]
    assert cli.main([*arguments, "--plot", str(plot), "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    printed = [json.loads(line) for line in out.splitlines()]
    assert printed
    assert f"{len(printed)} event" in err
    assert {event["query"] for event in printed} <= {query, "a dog barks"}
    assert all(0 <= event["start"] < event["end"] <= 9.0 for event in printed)

    stored = json.loads(files[1].read_text())
    assert stored["rule"]["threshold"] == 0.02
    assert stored["recording"] == recording
    assert stored["not"] == ["a cat"]
    assert all(event[time] == round(event[time], 3) for event in stored["events"] for time in ("start", "end"))
    assert [event["start"] for event in stored["events"]] == [event["start"] for event in printed]
    with files[0].open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    assert text.count("\r\n") == len(printed) + 1  # RFC 4180
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["query"] for row in rows] == [event["query"] for event in printed]
    assert {row["recording"] for row in rows} == {recording}
    labels = [line.split("\t") for line in files[2].read_text().splitlines()]
    assert {len(label) for label in labels} == {3}
    assert [float(label[0]) for label in labels] == pytest.approx([event["start"] for event in printed], abs=1e-6)
    header, *selections = [line.split("\t") for line in files[3].read_text(errors="surrogateescape").splitlines()]
    assert header[:5] == ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"]
    assert {len(row) for row in selections} == {len(header)}
    # Two spaces stay, as the path has them; a line break would end the row.
    assert {row[7] for row in selections} == {recording.replace("\n", " ").replace("\r", " ")}
    assert [row[0] for row in selections] == [str(number) for number in range(1, len(printed) + 1)]
    assert image.imread(plot).shape[2] == 4


def test_the_table_has_times_as_a_search_prints_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", noise(75.0), RATE)
    assert cli.main(["locate", str(folder), str(tmp_path / "a.wav"), "a bell", "--threshold", "0.001", "--quiet"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["time", "probability", "similarity", "query"]
    assert row.startswith("0:00:00.0-0:01:15.0  ")


def test_no_event_is_a_result(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE)
    out = tmp_path / "e.csv"
    arguments = ["locate", str(folder), str(tmp_path / "a.wav"), "a bell", "--min-duration", "60", "--out", str(out)]
    assert cli.main([*arguments, "--plot", str(tmp_path / "e.png"), "--quiet"]) == 0
    printed, err = capsys.readouterr()
    assert printed == ""
    assert err.startswith("slap-fast: 0 events in 1.0 s")
    assert out.read_text() == "recording,query,start,end,probability,similarity\n"
    located = locate(tiny_slap(), [noise(1.0)], ["a bell"], rule=EventRule(min_duration=60))
    assert as_audacity(located, "a", RATE) == ""
    assert as_raven(located, "a", RATE).count("\n") == 1


def test_a_recording_that_breaks_off_is_an_error_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.flac", noise(30.0), RATE)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.wav").write_bytes(b"")
    for name, reason in (("a.flac", "truncated|unreadable"), ("empty.wav", "empty_file")):
        out = tmp_path / "e.csv"
        assert cli.main(["locate", str(folder), str(tmp_path / name), "a bell", "--out", str(out), "--quiet"]) == 2
        err = capsys.readouterr().err
        assert any(word in err for word in reason.split("|"))
        assert name in err
        assert not out.exists()


def test_scores_are_perfect_for_a_model_that_hears_every_event(model: SLAP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that are exactly the text of their event."""
    texts = {"gong": model.encode_text("gong")[0], "rain on the roof": model.encode_text("rain on the roof")[0]}

    def encode(clips: list[torch.Tensor], **options: object) -> list[torch.Tensor]:
        encoded = []
        for clip in clips:
            columns = model.config.num_columns(len(clip))
            loud = [float(clip[column * 2560 : column * 2560 + 2560].abs().max()) for column in range(columns)]
            encoded.append(
                torch.stack(
                    [
                        texts["gong"] if v > 0.4 else texts["rain on the roof"] if v > 0.1 else -texts["gong"]
                        for v in loud
                    ]
                )
            )
        return encoded

    clips = []
    for number, events in enumerate(([("gong", 1.0, 1.0)], [("rain_on_the_roof", 0.0, 1.0), ("gong", 3.0, 1.0)], [])):
        wave = np.zeros(5 * RATE, np.float32)
        for name, onset, duration in events:
            wave[int(onset * RATE) : int((onset + duration) * RATE)] = 0.5 if name == "gong" else 0.2
        listed = [{"event": name, "onset": onset, "duration": duration} for name, onset, duration in events]
        clips.append(AudioInput(f"clip {number}", partial(lambda wave, rate: wave, wave), partial(dict, events=listed)))
    monkeypatch.setattr(model, "encode_audio", encode)
    rule = EventRule(threshold=0.2, smooth=0, min_duration=0)
    scores, skipped = score_localization(model, clips, rule=rule, resamples=20)
    assert not skipped
    assert (scores.clips, scores.classes) == (3, ["gong", "rain on the roof"])
    assert scores.recall == 1.0
    assert scores.auroc > 0.99
    assert scores.always_f1 == pytest.approx(2 * 3 / (2 * 3 + 27))
    nothing, _ = score_localization(model, clips, rule=EventRule(min_duration=100), resamples=0)
    assert (nothing.segment_f1, nothing.recall, nothing.found_where_absent) == (0.0, 0.0, 0.0)
    assert nothing.interval is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1"], "threshold is 1; it is a probability"),
        (["--smooth", "-1"], "smooth is -1"),
        (["--out", "e.xml"], "the name must end in .csv, .json, .txt"),
        (["--out", "a.wav", "--format", "csv"], "this is the recording, which would be overwritten"),
        (["--format", "raven"], "--format is of --out"),
        (["--out", "e.png", "--format", "csv", "--plot", "./e.png"], "two results would be written to this file"),
        (["--plot", "e.png", *"bcdefghijk"], "--plot draws at most 10 queries, but 11 are given"),
        (["--smooth", "1e9"], "smooth is 1e+09; at most 600 seconds"),
        (["--plot", "e.jpg"], "the name must end in .png"),
        (["a bell"], "'a bell' is given twice"),
        ([" "], "a query is empty"),
    ],
)
def test_wrong_arguments_are_an_error(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", noise(0.5), RATE)
    before = Path("a.wav").read_bytes()
    assert cli.main(["locate", "model", "a.wav", "a bell", *options]) == 2
    assert message in capsys.readouterr().err
    assert Path("a.wav").read_bytes() == before


def test_the_example_of_the_documentation_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/locating.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    soundfile.write(tmp_path / "dog.wav", noise(1.0), RATE)
    monkeypatch.chdir(tmp_path)
    exec(example.replace("demo/run/model", str(folder)), {})
    assert capsys.readouterr().out.endswith(")\n")
