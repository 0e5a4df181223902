"""Exported towers in onnxruntime and as `torch.export` programs, against the model."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slap_fast import cli
from slap_fast.errors import ModelError
from slap_fast.models.encoding import encode_features
from slap_fast.models.portable import files
from slap_fast.models.portable.audio_tower import PortableAudioTower
from slap_fast.models.slap import SLAP
from slap_fast.ops import MelConfig
from tests.models.builders import TINY
from tests.models.saved import TEXTS, tiny_slap

onnxruntime = pytest.importorskip("onnxruntime")


def test_onnx_towers_agree_with_the_model_at_every_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One local and one global layer. Of all conventions, torch.export and ONNX have most trouble with Whisper's.
    tiny_slap(mel=MelConfig.preset("whisper"), layers=2).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(files, "_LARGEST_FILE", 0)  # as of a model of more than 2 GB
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "model"), "--onnx", str(out)]) == 0
    assert "from the model" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path / "model"), "--onnx", str(out)]) == 2
    described = json.loads((out / "export.json").read_text())
    assert described["opset"] == files.OPSET
    assert {"audio.onnx", "audio.onnx.data", "text.onnx", "text.onnx.data"} == set(described["files"])
    model = SLAP.from_pretrained(tmp_path / "model")
    assert model.tokenizer is not None
    audio, text = (onnxruntime.InferenceSession(out / f"{name}.onnx") for name in ("audio", "text"))
    generator = torch.Generator().manual_seed(1)
    for count in (160, 161, 399, 2960, 2961, 16_000, 77_777, 480_001):
        clip = torch.rand(count, generator=generator) - 0.5
        (found,) = audio.run(None, {"waveform": clip[None].numpy()})
        embedding = model.encode_audio([clip], sampling_rate=16_000, long="whole").numpy()
        np.testing.assert_allclose(found, embedding, rtol=0, atol=1e-4, err_msg=f"{count} samples")
    for texts in (TEXTS, ["bell"], [""], TEXTS * 5):
        for side in ("left", "right"):
            ids = model.tokenizer(texts, padding=True, padding_side=side, return_tensors="np")
            inputs = {name: ids[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
            np.testing.assert_allclose(text.run(None, inputs)[0], model.encode_text(texts).numpy(), rtol=0, atol=1e-4)

    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    out.rename("exported")
    samples = np.linspace(-0.5, 0.5, 12_345, dtype=np.float32)
    names: dict[str, Any] = {"samples": samples}
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(example, names)
    expected = model.encode_audio(samples, sampling_rate=16_000) @ model.encode_text("a dog barks").T
    np.testing.assert_allclose(names["sound"] @ names["words"].T, expected.numpy(), rtol=0, atol=1e-4)


def test_a_model_without_text_is_exported_as_audio_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_slap(("self_distillation",), layers=1)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "model"), "--torch-export", str(out)]) == 0
    assert "no text tower, and audio features without pooling" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["audio.pt2", "export.json"]
    run = torch.export.load(out / "audio.pt2").module()
    for samples in (1, 16_001, 160_000):
        clip = torch.rand(samples, generator=torch.Generator().manual_seed(1)) - 0.5
        with torch.no_grad():
            expected, _ = encode_features(model, [clip])
        torch.testing.assert_close(run(clip[None]), expected, rtol=0, atol=1e-4)


def test_an_export_that_deviates_is_an_error(tmp_path: Path) -> None:
    case = ((torch.ones(1, 4),), torch.full((1, 4), 1.1))
    with pytest.raises(
        ModelError, match=r"audio tower: the exported torch program deviates by 0\.1 .* \[1, 4\] inputs"
    ):
        files._export(nn.Identity(), [case], None, tmp_path, "audio", "torch", 1 << 30)


@pytest.mark.parametrize("window_columns", [1, 3, 8])
def test_local_windows_and_positions_equal_those_of_the_packed_encoder(window_columns: int) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, audio=dataclasses.replace(TINY.audio, window_columns=window_columns))
    model = SLAP(config, objectives=("contrastive",)).eval()
    tower = PortableAudioTower(model)
    with torch.no_grad():
        for samples in (1, 5000, 50_000):
            clip = torch.rand(samples) - 0.5
            expected = model.encode_audio([clip], sampling_rate=16_000)
            torch.testing.assert_close(tower(clip[None]), expected, rtol=0, atol=1e-5)
