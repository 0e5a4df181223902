from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from slap_fast import cli
from slap_fast.commands import caption, embed, evaluate, prepare
from slap_fast.data import tokenizer
from slap_fast.evaluation.caption_metrics import METRIC_TITLES
from tests.commands.stored_embeddings import read_embeddings
from tests.evaluation.fakes import LoudnessModel

LOUDNESS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: exit code, stdout, stderr."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_command


@pytest.fixture
def loudness_model(monkeypatch: pytest.MonkeyPatch) -> LoudnessModel:
    """Replaces the model of every command with one that embeds loudness."""
    model = LoudnessModel()
    for command in (caption, embed, evaluate):
        monkeypatch.setattr(command, "load_model", lambda folder, device, precision: model)
    return model


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Square waves of different loudness, which is their file name, with caption files."""
    folder = tmp_path_factory.mktemp("audio")
    for loudness in LOUDNESS:
        wave = loudness * np.where(np.arange(16_000) % 100 < 50, 1.0, -1.0)
        soundfile.write(folder / f"{loudness}.wav", wave, 16_000)
        (folder / f"{loudness}.txt").write_text(f"a tone of loudness {loudness}\nit sounds {loudness} loud\n")
    return folder


@pytest.fixture(scope="session")
def dataset(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "tones"
    options = ["--out", str(folder), "--workers", "0", "--vocab-size", "0", "--quiet"]
    assert cli.main(["prepare", str(audio), *options]) == 0
    return folder


def broken_file(folder: Path) -> Path:
    path = folder / "broken.wav"
    path.write_bytes(b"RIFF and then nothing")
    return path


def test_embeddings_of_texts_are_named_by_the_texts(run: Run, loudness_model: LoudnessModel, tmp_path: Path) -> None:
    stored = tmp_path / "new" / "texts.npz"
    code, out, _ = run("embed", "model", "loud 0.9", "grün 0.1", "--text", "--out", stored)
    assert (code, out) == (0, f"{stored}: 2 embeddings of width 2\n")
    names, embeddings = read_embeddings(stored)
    assert names == ["loud 0.9", "grün 0.1"]
    np.testing.assert_allclose(embeddings, loudness_model.encode_text(names).numpy())


def test_captions_are_printed_with_their_clips(run: Run, loudness_model: LoudnessModel, audio: Path) -> None:
    code, out, _ = run("caption", "model", audio / "0.4.wav", audio / "0.1.wav")
    assert code == 0
    assert out.splitlines() == [f"{audio / '0.4.wav'}\tloudness 0.40", f"{audio / '0.1.wav'}\tloudness 0.10"]


def test_captions_of_a_dataset_have_their_references(run: Run, loudness_model: LoudnessModel, dataset: Path) -> None:
    code, out, _ = run("caption", "model", dataset, "--json")
    assert code == 0
    first = json.loads(out.splitlines()[0])
    assert first["references"] == ["a tone of loudness 0.1", "it sounds 0.1 loud"]


@pytest.mark.parametrize("command", ["embed", "caption"])
def test_bad_audio_is_reported_and_the_rest_is_processed(
    run: Run, loudness_model: LoudnessModel, audio: Path, tmp_path: Path, command: str
) -> None:
    broken = broken_file(tmp_path)
    soundfile.write(tmp_path / "nan.wav", np.full(1000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "long.wav", np.zeros(40_000), 8_000)
    inputs = [broken, audio / "0.4.wav", tmp_path / "nan.wav", tmp_path / "none.wav", tmp_path / "empty.wav"]
    inputs += [tmp_path / "long.wav", audio / "0.7.wav"]
    options = {"embed": ["--out", tmp_path / "x.npz"], "caption": []}[command]
    code, out, err = run(command, "model", *inputs, *options, "--max-seconds", 4, "--quiet")
    assert code == 1
    skipped = err.splitlines()
    for line, name in zip(skipped, ("broken", "nan", "none", "empty", "long"), strict=False):
        assert line.startswith(f"skipped {tmp_path / name}.wav: ")
    assert skipped[5:] == ["slap-fast: skipped 5 of 7; the rest is done"]
    if command == "embed":
        assert read_embeddings(tmp_path / "x.npz")[0] == [str(audio / "0.4.wav"), str(audio / "0.7.wav")]
    else:
        assert len(out.splitlines()) == 2


@pytest.mark.parametrize("command", ["embed", "caption"])
def test_only_bad_audio_is_an_error(run: Run, loudness_model: LoudnessModel, tmp_path: Path, command: str) -> None:
    options = ["--out", tmp_path / "x.npz"] if command == "embed" else []
    code, out, err = run(command, "model", broken_file(tmp_path), *options, "--quiet")
    assert (code, out) == (2, "")
    assert "none of 1 clips could be read" in err
    assert not (tmp_path / "x.npz").exists()


def test_evaluation_prints_metrics_and_writes_metrics_and_plots(
    run: Run, loudness_model: LoudnessModel, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    code, out, _ = run("evaluate", tmp_path / "model", dataset, "--captions", "--query", "0.5")
    assert code == 0
    assert "6 clips, 12 captions" in out
    rows = {line[:13].strip(): line[13:].split() for line in out.splitlines()}
    assert rows["text to audio"] == ["100.0", "100.0", "100.0", "100.0", "1"]
    written = tmp_path / "evaluation"
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics["retrieval"]["t2a_r1"] == metrics["retrieval"]["a2t_map10"] == 1.0
    assert metrics["retrieval"]["chance_t2a_r1"] == pytest.approx(1 / 6)
    assert metrics["skipped"] == []
    captions = [json.loads(line) for line in (written / "captions.jsonl").read_text().splitlines()]
    assert [entry["caption"] for entry in captions] == [f"loudness {loudness:.2f}" for loudness in LOUDNESS]
    scores = metrics["captioning"]
    assert 0 < scores["cider_d"] < 10
    assert scores["intervals"]["cider_d"][0] <= scores["cider_d"]
    assert set(METRIC_TITLES) == set(METRIC_TITLES) & (set(scores) | set(scores["unavailable"]))
    assert f"CIDEr-D  {scores['cider_d']:.4f}" in out
    plots = {"similarity.png", "localization.png", "localization-2.png", "localization-3.png", "losses.png"}
    assert {path.name for path in written.glob("*.png")} == plots
    assert f"wrote {written / 'similarity.png'}" in out


def test_a_limited_evaluation_takes_evenly_spaced_clips(
    run: Run, loudness_model: LoudnessModel, dataset: Path, tmp_path: Path
) -> None:
    code, out, _ = run("evaluate", "m", dataset, "--limit", 3, "--no-plots", "--captions", "--json", "--out", tmp_path)
    assert code == 0
    assert json.loads(out)["retrieval"]["clips"] == 3
    captions = [json.loads(line)["caption"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert captions == ["loudness 0.10", "loudness 0.40", "loudness 0.70"]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "captions.jsonl"}


def test_zero_shot_classification_of_a_folder_per_class(
    run: Run, loudness_model: LoudnessModel, tmp_path: Path
) -> None:
    for label, loudness in (("0.2", 0.2), ("0.2", 0.3), ("0.8", 0.9), ("0.8", 0.35)):
        (tmp_path / "sounds" / label).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "sounds" / label / f"{loudness}.wav", np.full(1600, loudness), 16_000)
    broken_file(tmp_path / "sounds" / "0.8")
    arguments = ["--zero-shot", tmp_path / "sounds", "--templates", "{} loud", "--out", tmp_path / "out", "--quiet"]
    code, out, err = run("evaluate", "model", *arguments)
    assert code == 1
    assert "broken.wav" in err
    assert "75.0 % of 4 clips right" in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["zero_shot"]["accuracy_at_1"] == 0.75
    assert metrics["zero_shot"]["confusion"] == {"classes": ["0.2", "0.8"], "counts": [[2, 0], [1, 1]]}
    assert "broken.wav" in metrics["skipped"][0]["name"]


def test_the_synthetic_dataset_has_two_splits_and_a_tokenizer_for_training(run: Run, tmp_path: Path) -> None:
    arguments = ["--synthetic", "--train-clips", 3, "--validation-clips", 2, "--workers", 0, "--json", "--quiet"]
    code, out, _ = run("prepare", *arguments, "--out", tmp_path)
    assert code == 0
    train, validation = (json.loads(line) for line in out.splitlines())
    assert (train["clips"], train["folder"]) == (3, str(tmp_path / "train"))
    assert (validation["clips"], validation["folder"]) == (2, str(tmp_path / "validation"))
    assert (tmp_path / "train" / "tokenizer" / "tokenizer.json").is_file()
    shards = {path.name: path.read_bytes() for path in (tmp_path / "train").glob("*.tar")}
    code, out, _ = run("prepare", *arguments, "--out", tmp_path)
    assert code == 0
    assert json.loads(out.splitlines()[0])["already_complete"] is True
    assert {path.name: path.read_bytes() for path in (tmp_path / "train").glob("*.tar")} == shards


def test_rejected_clips_of_a_dataset_are_counted_and_listed(run: Run, audio: Path, tmp_path: Path) -> None:
    rows = [f"{audio}/{loudness}.wav,a tone\n" for loudness in LOUDNESS] + ["none.wav,a tone\n"]
    (tmp_path / "clips.csv").write_text("path,caption\n" + "".join(rows))
    arguments = ["--out", tmp_path / "out", "--workers", 0, "--vocab-size", 0, "--quiet"]
    code, out, _ = run("prepare", tmp_path / "clips.csv", *arguments)
    assert code == 0
    assert "6 clips" in out
    assert "1 x missing_file" in out
    assert "none.wav" in (tmp_path / "out" / "report.jsonl").read_text()


def test_an_index_can_be_rewritten(run: Run, dataset: Path, tmp_path: Path) -> None:
    shard = next(dataset.glob("*.tar"))
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    code, out, _ = run("prepare", tmp_path, "--reindex", "--vocab-size", 0, "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["clips"] == len(LOUDNESS)
    np.testing.assert_array_equal(np.load(tmp_path / "index.npy"), np.load(dataset / "index.npy"))


USAGE_ERRORS: list[tuple[list[str], str]] = [
    ([], "COMMAND"),
    (["sing"], "invalid choice: 'sing'"),
    (["embed", "model", "a.wav", "--out", "x.json"], "x.json: embeddings are written as"),
    (["embed", "none", "a.wav", "--out", "x.npz"], "none: no such folder"),
    (["search", "none", "a dog"], "none: no such folder; make one with `slap-fast index none --model MODEL FOLDER`"),
    (["search", "none", "a dog", "--top", "0"], "--top"),
    (["embed", "model", "", "--out", "x.npz"], "no such folder"),
    (["embed", "model", "a.wav", "--out", "/proc/none/x.npz"], "/proc/none/x.npz: cannot be written (/proc: "),
    (["evaluate", "model"], "give a DATASET"),
    (["evaluate", "model", "none"], "none"),
    (["evaluate", "model", "none", "--log", "none.jsonl"], "none.jsonl: no such log"),
    (
        ["evaluate", "model", "--suite", "paper"],
        "--suite paper and --data ROOT, the folder of its datasets, go together",
    ),
    (["evaluate", "model", "--suite", "paper", "--data", "none"], "--data none: no such folder"),
    (["evaluate", "model", "none", "--split", "eval"], "--split is of the clips of --zero-shot"),
    (["evaluate", "model", "none", "--prompts", "clap"], "--prompts and --templates are for --zero-shot and --suite"),
    (["evaluate", "model", "none", "--relevance", "r.csv", "--limit", "3"], "--relevance needs all clips"),
    (["evaluate", "model", "none", "--bootstrap", "-1"], "'-1' is neither 0 nor a positive whole number"),
    (["prepare", "--out", "x"], "give a SOURCE, or --synthetic"),
    (["prepare", "a.csv"], "give --out DIR"),
    (["prepare", "a", "--reindex", "--out", "x"], "no --out"),
    (["prepare", "none", "--reindex"], "none: holds no .tar file"),
    (["prepare", "a.csv", "--synthetic", "--out", "x"], "leave out SOURCE"),
    (["prepare", "a.csv", "b.csv", "--out", "x"], "a.csv: does not exist"),
    (["prepare", "*.parquet", "--out", "x"], "*.parquet: matches no file"),
    (["prepare", "a", "--vocab-size", "260", "--out", "x"], "--vocab-size is 260; 256 bytes and 5 special tokens need"),
    (["prepare", "a", "--seed", "1", "--out", "x"], "--seed: not used with a SOURCE"),
    (["prepare", "--synthetic", "--audio-dir", "a", "--out", "x"], "--audio-dir: not used with --synthetic"),
    (["prepare", "a", "--reindex", "--workers", "2", "--layout", "folder"], "--layout, --workers: not used with"),
    (["prepare", "none.csv", "--out", "x"], "none.csv: does not exist"),
    (["prepare", "a", "--layout", "gigaspeech", "--out", "x"], "invalid choice: 'gigaspeech'"),
    (["prepare", "a", "--min-duration", "5", "--max-duration", "4", "--out", "x"], "leave no clip"),
    (["prepare", "a", "--workers", "-1", "--out", "x"], "--workers is -1"),
]


def test_the_smallest_vocabulary_is_the_tokenizers() -> None:
    assert prepare.SMALLEST_VOCABULARY == tokenizer._MIN_VOCAB


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS)
def test_usage_errors_are_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("slap-fast")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_audio_is_an_error(run: Run, loudness_model: LoudnessModel, tmp_path: Path) -> None:
    code, _, err = run("caption", "model", tmp_path)
    assert code == 2
    assert f"{tmp_path}: no audio in this folder" in err


def test_a_damaged_model_is_an_error(run: Run, audio: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    code, _, err = run("caption", tmp_path, audio)
    assert code == 2
    assert f"{tmp_path}: cannot load the model" in err


def test_train_passes_its_arguments_on_and_its_errors_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from slap_fast.config.loading import ConfigError

    received: list[Any] = []

    def main(arguments: list[str]) -> None:
        received.extend(arguments)
        if "data.train=none" in arguments:
            raise ConfigError("data.train is none; it must be a folder")

    monkeypatch.setitem(sys.modules, "slap_fast.train", SimpleNamespace(main=main))
    assert run("train", "recipe=quickstart", "data.train=x")[0] == 0
    assert received == ["recipe=quickstart", "data.train=x"]
    code, _, err = run("train", "recipe=quickstart", "data.train=none")
    assert (code, err) == (2, "slap-fast train: data.train is none; it must be a folder\n")
    received.clear()
    code, _, err = run("train", "recipe=quickstart", "training.outptu=x")
    assert (code, received) == (2, [])
    assert err.startswith("slap-fast train: ")
    assert "did you mean 'training.output'?" in err
    assert len(err.splitlines()) == 1


def test_info_prints_versions_and_devices(run: Run) -> None:
    code, out, _ = run("info")
    assert code == 0
    assert "torch" in out
    assert "cpu" in out


def fail_with(error: BaseException) -> Callable[[Any], int]:
    def run_command(arguments: Any) -> int:
        raise error

    return run_command


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slap_fast.commands.info.run", fail_with(ValueError("a bug")))
    code, out, err = run("info")
    # Not 1, which means skipped clips.
    assert (code, out) == (70, "")
    assert err.startswith("Traceback")
    assert "ValueError: a bug" in err
    assert err.endswith("slap-fast info: this is a bug of slap-fast; please report it\n")


def test_a_full_disk_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slap_fast.commands.info.run", fail_with(OSError(28, "No space left on device", "x.npz")))
    assert run("info") == (2, "", "slap-fast info: x.npz: No space left on device\n")
    monkeypatch.setattr("slap_fast.commands.info.run", fail_with(MemoryError()))
    assert run("info") == (2, "", "slap-fast info: out of memory\n")


def test_an_interrupt_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slap_fast.commands.info.run", fail_with(KeyboardInterrupt()))
    assert run("info") == (130, "", "slap-fast: interrupted\n")


def test_a_reader_that_closes_stdout_is_not_an_error() -> None:
    code = (
        "import sys; from slap_fast import cli; from slap_fast.commands import info\n"
        "def endless(arguments):\n"
        "    while True: print('line')\n"
        "info.run = endless\n"
        "sys.exit(cli.main(['info']))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 141


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from slap_fast import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'numpy', 'transformers', 'soundfile', 'tqdm'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "evaluate" in result.stdout


def test_a_positional_argument_may_follow_an_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["evaluate", str(tmp_path), "--quiet", str(tmp_path / "data")]) == 2
    assert f"{tmp_path / 'data'}: not a folder" in capsys.readouterr().err
