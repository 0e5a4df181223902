"""`slap-fast index`: what is printed, exit codes, and arguments that are refused before torch is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from slap_fast import SLAP, cli
from slap_fast.commands.shared import clock
from slap_fast.library.text_tower import FOLDER_NAME
from tests.models.saved import tiny_slap


@pytest.fixture
def model(tmp_path: Path, empty_library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model of `empty_library`, with whose text tower a library is made: its export takes longer than a test."""

    def copy_text_tower(_: SLAP, library: Path) -> None:
        shutil.copytree(empty_library / FOLDER_NAME, library / FOLDER_NAME)

    monkeypatch.setattr("slap_fast.library.indexing.derived.export_text_tower", copy_text_tower)
    return shutil.copytree(empty_library.parent / "model", tmp_path / "model")


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
    assert capsys.readouterr().out == f"{library}: removed 2 recordings and 1 file that failed\n"
    new = tmp_path / "new"
    for arguments in (["--device", "mps", "--workers", "2"], ["--remove", str(sounds)]):
        assert cli.main(["index", str(new), "--model", str(model), str(sounds), *arguments]) == 2
        assert not new.exists()
    new.mkdir()
    assert cli.main(["index", str(new), "--model", str(model), str(sounds), "--remove", str(sounds)]) == 2
    assert list(new.iterdir()) == []


def test_wrong_arguments_are_reported_before_torch_is_loaded(tmp_path: Path, model: Path, sounds: Path) -> None:
    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    (tmp_path / "nothing").mkdir()
    cases = [
        (["none"], "none: no such folder; make one with `slap-fast index none --model MODEL FOLDER`"),
        (["sounds"], "sounds: no library in this folder"),
        (["model", "sounds"], "model: this is a model; first name the library"),
        (["new", "--model", "model"], "new: a new library needs a FOLDER"),
        (["new", "--model", "model", "nowhere"], "nowhere: no such file or folder"),
        (["new", "--model", "model", ""], "a FOLDER argument is empty"),
        (["new", "--model", "model", "nothing"], "nothing: no audio in this folder"),
        (["sounds", "--model", "model", "sounds"], "sounds: this folder is not empty (it has '0.wav')"),
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


def test_an_interrupt_says_what_is_kept_and_a_watch_tells_changes_apart_from_failures(
    tmp_path: Path, model: Path, sounds: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    assert cli.main(["index", str(library), "--model", str(model), str(sounds), "--quiet"]) == 0
    soundfile.write(sounds / "long.wav", np.random.default_rng(2).uniform(-0.5, 0.5, 720 * 16_000), 16_000)
    encode, encoded = SLAP.encode_audio, 0

    def interrupted(model: SLAP, clips: list[np.ndarray], **options: Any) -> Any:
        nonlocal encoded
        if encoded + len(clips) > 140:
            raise KeyboardInterrupt
        encoded += len(clips)
        return encode(model, clips, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SLAP, "encode_audio", interrupted)
        capsys.readouterr()
        assert cli.main(["index", str(library), "--workers", "0", "--quiet"]) == 130
    printed = capsys.readouterr()
    assert printed.err == "slap-fast: interrupted\n"
    assert printed.out.splitlines() == [
        f"{library}: 0 new, 2 unchanged",
        f"kept the first {clock(5 * encoded + 5)} of 0:12:00.0: {sounds}/long.wav",
        "the same command goes on from here",
    ]
    assert cli.main(["index", str(library), "--remove", str(sounds)]) == 0
    left_out = "removed 2 recordings and 1 recording that is embedded in part"
    assert capsys.readouterr().out == f"{library}: {left_out}\n"

    (sounds / "long.wav").unlink()
    (sounds / "empty.wav").touch()
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            sounds.rename(tmp_path / "unmounted")
        elif looks == 2:
            (tmp_path / "unmounted").rename(sounds)
        elif looks == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("slap_fast.library.indexing.indexer.time.sleep", sleep)
    assert cli.main(["index", str(library), str(sounds), "--watch", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{library}: 2 new, 1 failed",
        "looking for changes every 10 s; Ctrl-C ends this",
        f"back {sounds}",
    ]
    empty, missing = printed.err.splitlines()
    assert empty == f"failed {sounds}/empty.wav: empty_file: 0 bytes"
    assert missing.startswith(f"failed {sounds}: folder_missing: no such file or folder; its 2 recordings and 1 file ")


def test_folders_are_not_required(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("index", "search"):
        with pytest.raises(SystemExit):
            cli.main([command])
        assert capsys.readouterr().err.endswith("the following arguments are required: LIBRARY\n")


def test_a_model_without_the_contrastive_objective_makes_no_library(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_slap(["caption"], layers=1).save_pretrained(tmp_path / "model")
    assert cli.main(["index", str(tmp_path / "new"), "--model", str(tmp_path / "model"), str(sounds)]) == 2
    assert "trained with objectives.contrastive_weight=0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
