"""Errors that commands report before they load a model, interrupted embedding, and skipped files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from slap_fast import cli
from slap_fast.commands import embed, evaluate
from slap_fast.inference import embed as inference_embed
from tests.commands.stored_embeddings import read_embeddings
from tests.evaluation.fakes import LoudnessModel


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    folder.mkdir()
    for loudness in (0.2, 0.4, 0.6):
        wave = loudness * np.where(np.arange(16_000) % 100 < 50, 1.0, -1.0)
        soundfile.write(folder / f"{loudness}.wav", wave, 16_000)
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LoudnessModel:
    model = LoudnessModel()
    monkeypatch.setattr(embed, "load_model", lambda folder, device, precision: model)
    return model


def test_invalid_arguments_are_reported_before_torch_is_loaded(audio: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("text_config/config.json", "config.json", "model.safetensors", "tokenizer/tokenizer.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, missing in (("bare", "model.safetensors"), ("mute", "tokenizer")):
        shutil.copytree(folder, tmp_path / name)
        path = tmp_path / name / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "silent").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "dataset.json").write_text("{")
    out = ["--out", "x.npz"]
    cases = [
        (["embed", "nowhere", "audio", *out], "nowhere: no such folder; MODEL is the folder that training wrote"),
        (["embed", "bare", "audio", *out], "bare: cannot load the model: model.safetensors is missing"),
        (["caption", "mute", "audio"], "mute: it has no tokenizer/"),
        (["embed", "model", "none.wav", *out], "none.wav: no such file or folder"),
        (["caption", "model", "a.wav", "b.wav"], "a.wav: no such file or folder (none of the 2 arguments exists)"),
        (["embed", "model", "audio", "", *out], "an AUDIO argument is empty"),
        (
            ["search", "model", "a dog"],
            "model: this is a model, not a library; index recordings with it",
        ),
        (["app", "nowhere"], "nowhere: no such folder; make one with `slap-fast index nowhere"),
        (["app", "silent"], "silent: no library in this folder; make one with"),
        (["app", "model"], "model: this is a model, not a library; index recordings with it"),
        (["locate", "model", "none.wav", "a dog"], "none.wav: no such file"),
        (["locate", "nowhere", "model/config.json", "a dog"], "nowhere: no such folder; MODEL is the folder"),
        (["locate", "bare", "model/config.json", "a dog"], "bare: cannot load the model: model.safetensors is missing"),
        (["locate", "model", "silent", "a dog"], "silent: a folder is no recording"),
        (["locate", "model", "model/config.json", "a dog", "--out", "x.xml"], "--out x.xml: the name must end in .csv"),
        (["locate", "model", "model/config.json", "a dog", "--threshold", "2"], "threshold is 2; it is a probability"),
        (["caption", "model", "silent"], "silent: no audio in this folder"),
        (["caption", "model", "torn"], "torn/dataset.json: cannot be read as JSON"),
        (["embed", "model", "audio", *out, "--device", "gpu"], "--device gpu: no such device"),
        (["embed", "model", "audio", *out, "--device", "cuda:x"], "--device cuda:x: no such device"),
        (["embed", "model", "audio", *out, "--max-seconds", "0"], "--max-seconds is 0; it must be above 0"),
        (["embed", "model", "audio", "--out", "audio/0.2.wav/x.npz"], "x.npz: cannot be written"),
    ]
    code = (
        "import json, sys; from slap_fast import cli\n"
        "for arguments in json.load(sys.stdin):\n"
        "    assert cli.main(arguments) == 2, arguments\n"
        "    assert not {'torch', 'transformers'} & sys.modules.keys(), arguments\n"
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
    lines = result.stderr.splitlines()
    assert len(lines) == len(cases)
    for line, (arguments, message) in zip(lines, cases, strict=True):
        assert line.startswith(f"slap-fast {arguments[0]}: ")
        assert message in line
    assert not (tmp_path / "x.npz").exists()


def test_keys_of_a_recipe_are_checked_before_training_and_planning_code_is_loaded() -> None:
    code = (
        "import sys; from slap_fast import cli\n"
        "for command, key in (('train', 'training.outptu=x'), ('plan', 'plan.memory=80'), ('plan', 'device=h10')):\n"
        "    assert cli.main([command, 'recipe=quickstart', key]) == 2, command\n"
        "    heavy = {'slap_fast.train', 'slap_fast.planning.planner', 'transformers', 'deepspeed'}\n"
        "    assert not heavy & sys.modules.keys(), command\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    train, plan, device = result.stderr.splitlines()
    assert "did you mean 'training.output'?" in train
    assert "did you mean 'plan.memory_gb'?" in plan
    assert "did you mean 'h100'?" in device


def test_classes_are_read_before_the_model(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("text_config/config.json", "config.json", "model.safetensors", "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(evaluate, "load_model", lambda folder, device, precision: pytest.fail("the model was loaded"))
    assert cli.main(["evaluate", str(tmp_path), "--zero-shot", str(audio.parent / "none"), "--no-plots"]) == 2
    assert "none: no such folder or CSV" in capsys.readouterr().err


@pytest.mark.skipif(any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/kfd")), reason="there is a GPU")
def test_a_missing_gpu_is_reported(audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("text_config/config.json", "config.json", "model.safetensors", "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert cli.main(["caption", str(tmp_path), str(audio), "--device", "cuda:1"]) == 2
    assert "--device cuda:1: this machine has no GPU" in capsys.readouterr().err


def test_an_interrupt_keeps_the_embeddings_so_far_in_a_partial_file(
    model: LoudnessModel,
    audio: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inference_embed, "BATCH_SECONDS", 1.0)
    encode, calls = model.encode_audio, []

    def interrupted(clips: Any, **options: Any) -> Any:
        calls.append(clips)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(clips, **options)

    monkeypatch.setattr(model, "encode_audio", interrupted)
    (tmp_path / "x.npz").write_bytes(b"the earlier one")
    assert cli.main(["embed", "model", str(audio), "--out", str(tmp_path / "x.npz"), "--quiet"]) == 130
    assert (tmp_path / "x.npz").read_bytes() == b"the earlier one"
    names, embeddings = read_embeddings(tmp_path / "x.partial.npz")
    assert names == [str(audio / f"{loudness}.wav") for loudness in (0.2, 0.4)]
    expected = [encode(clips, sampling_rate=16_000).numpy() for clips in calls[:2]]
    np.testing.assert_array_equal(embeddings, np.concatenate(expected))
    assert capsys.readouterr().err.splitlines() == [
        f"slap-fast: 2 of 3 embeddings were done and are kept in {tmp_path / 'x.partial.npz'}",
        "slap-fast: interrupted",
    ]


def test_files_of_a_folder_that_cannot_be_embedded_are_reported_with_a_way_to_convert_them(
    model: LoudnessModel, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (audio / "speech.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    (audio / "odd.wav").write_bytes(b"RIFF and then nothing" * 10)
    raw = os.fsencode(audio) + b"/\xff.wav"
    shutil.copy(os.fsencode(audio / "0.2.wav"), raw)
    inner = audio / "prepared"
    inner.mkdir()
    (inner / "dataset.json").write_text("{}")
    (inner / "a.wav").write_bytes(b"")
    assert cli.main(["embed", "model", str(audio), "--out", str(tmp_path / "x.npy"), "--quiet"]) == 1
    skipped = capsys.readouterr().err
    assert f"skipped {audio / 'speech.m4a'}: unsupported_format: " in skipped
    assert "convert it, for example with `ffmpeg -i FILE FILE.flac`" in skipped
    (odd,) = [line for line in skipped.splitlines() if "odd.wav" in line]
    assert "unreadable: " in odd
    assert "if it is audio, convert it" in odd
    assert f"skipped {inner}" in skipped
    assert read_embeddings(tmp_path / "x.npy")[0] == [
        *(str(audio / f"{loudness}.wav") for loudness in (0.2, 0.4, 0.6)),
        os.fsdecode(raw),
    ]
