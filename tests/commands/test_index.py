"""`slap-fast index`: what is printed, exit codes, and arguments that are refused before torch is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slap_fast import cli
from tests.models.saved import tiny_slap


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_slap(layers=1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 16_000)
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
    return folder


def test_a_library_is_made_updated_and_cleared(
    tmp_path: Path, model: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "library"
    assert cli.main(["index", str(library), "--model", str(model), str(sounds), "--quiet"]) == 0
    assert capsys.readouterr() == (f"{library}: 2 new\n", "")
    (sounds / "0.wav").rename(sounds / "new\nname.wav")
    (sounds / "empty.wav").touch()
    (sounds / "notes.txt").touch()
    assert cli.main(["index", str(library), "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{library}: 0 new, 1 renamed, 1 unchanged, 1 failed\nleft out: 1 other file\n"
    assert printed.err == f"failed {sounds}/empty.wav: empty_file: 0 bytes\n"
    code = (
        "import sys; from slap_fast import cli\n"
        "assert cli.main(['index', 'library', '--quiet']) == 1\n"
        "assert not {'torch', 'transformers', 'faiss'} & sys.modules.keys(), 'nothing has changed'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert cli.main(["index", str(library), "--device", "mps", "--workers", "2"]) == 2
    assert "2 workers embed on the CPU, not on mps; leave one of the two out" in capsys.readouterr().err
    assert cli.main(["index", str(library), "--remove", str(sounds)]) == 0
    assert capsys.readouterr().out == f"{library}: removed 3 recordings\n"


def test_wrong_arguments_are_reported_before_torch_is_loaded(tmp_path: Path, model: Path, sounds: Path) -> None:
    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    cases = [
        (["none"], "none: no such folder; make one with `slap-fast index none --model MODEL FOLDER`"),
        (["sounds"], "sounds: no library in this folder"),
        (["model", "sounds"], "model: this is a model; first name the library"),
        (["new", "--model", "model"], "new: a new library needs a FOLDER"),
        (["new", "--model", "model", "nowhere"], "nowhere: no such file or folder"),
        (["new", "--model", "model", ""], "a FOLDER argument is empty"),
        (["new", "--model", "bare", "sounds"], "bare: cannot load the model: model.safetensors is missing"),
        (["new", "--model", "model", "sounds", "--device", "gpu"], "--device gpu: no such device"),
    ]
    code = (
        "import json, sys; from slap_fast import cli\n"
        "for arguments in json.load(sys.stdin):\n"
        "    assert cli.main(['index', *arguments]) == 2, arguments\n"
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
    for line, (_, message) in zip(result.stderr.splitlines(), cases, strict=True):
        assert message in line
    assert not (tmp_path / "new").exists()


def test_a_model_without_the_contrastive_objective_makes_no_library(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_slap(["caption"], layers=1).save_pretrained(tmp_path / "model")
    assert cli.main(["index", str(tmp_path / "new"), "--model", str(tmp_path / "model"), str(sounds)]) == 2
    assert "trained with objectives.contrastive_weight=0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
