"""`--precision` of the commands: where it is, and that no result of it is mixed or mistaken silently."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

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


def test_a_probe_keeps_the_embeddings_of_each_precision_apart(folder, capsys):
    rng = np.random.default_rng(1)
    for label in ("hum", "hiss"):
        (folder / "labeled" / label).mkdir(parents=True)
        for at in range(10):
            sound = rng.normal(scale=0.1, size=4000) if label == "hiss" else np.sin(0.05 * np.arange(4000 + at))
            soundfile.write(folder / "labeled" / label / f"{at}.wav", sound, 16_000)
    command = ["probe", str(folder / "model"), str(folder / "labeled"), "--out", str(folder / "probe"), "--no-plots"]
    for precision in ("fp32", "bf16", "int8", "int8"):
        assert main([*command, "--precision", precision, "--quiet", "--json"]) == 0
        assert json.loads(capsys.readouterr().out).get("precision", "fp32") == precision
    stored = [load_file(file)["embeddings"] for file in (folder / "probe" / "embeddings").iterdir()]
    assert len(stored) == 3
    for at, embeddings in enumerate(stored):
        assert embeddings.dtype == np.float32
        for other in stored[:at]:
            assert not np.array_equal(embeddings, other)
            np.testing.assert_allclose((embeddings * other).sum(axis=1), 1, atol=5e-3)


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
