"""`--precision` of the commands: where it is, and that no result of it is mixed or mistaken silently."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from slap_fast.cli import main
from tests.models.saved import tiny_slap
from tests.ops._native import needs_native

pytestmark = needs_native


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    tiny_slap().save_pretrained(folder / "model")
    noise = np.random.default_rng(0).normal(scale=0.1, size=16_000)
    soundfile.write(folder / "noise.wav", noise, 16_000)
    return folder


def test_embed_quantizes_and_says_so(folder, capsys):
    rows = {}
    for precision in ("fp32", "int8"):
        out = folder / f"{precision}.npz"
        command = ["embed", str(folder / "model"), str(folder / "noise.wav"), "--out", str(out), "--quiet"]
        assert main([*command, "--precision", precision]) == 0
        assert capsys.readouterr().out.rstrip().endswith("by int8 weights") == (precision == "int8")
        rows[precision] = np.load(out)["embeddings"][0]
    assert not np.array_equal(rows["int8"], rows["fp32"])
    assert rows["int8"] @ rows["fp32"] > 0.999


def test_int8_on_a_gpu_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr("slap_fast.commands.shared._GPU_DRIVERS", (str(folder),))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    command = ["embed", str(folder / "model"), str(folder / "noise.wav"), "--out", str(folder / "no.npz")]
    assert main([*command, "--precision", "int8", "--device", "cuda"]) == 2
    assert "--precision int8 is for CPUs, and --device is cuda" in capsys.readouterr().err
    assert not (folder / "no.npz").exists()


def test_a_library_takes_no_precision(folder, capsys):
    """Its embeddings are float32's: those of two precisions in one library would differ by more than rounding."""
    with pytest.raises(SystemExit) as stopped:
        main(["index", str(folder / "library"), "--model", str(folder / "model"), "--precision", "int8"])
    assert stopped.value.code == 2
    assert "--precision" in capsys.readouterr().err
    assert not (folder / "library").exists()
