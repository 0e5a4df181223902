"""SLAP through the real Auto classes and pipelines of transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, pipeline

import slap_fast
from slap_fast.errors import ModelError
from slap_fast.models.slap import SLAP
from slap_fast.ops import contrastive_loss
from tests.hub_server import HubServer
from tests.models.builders import random_clips
from tests.models.saved import TEXTS, tiny_slap

CLIPS = random_clips([1.0, 0.005, 2.7])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    tiny_slap().save_pretrained(path)
    return path


def test_the_auto_classes_find_the_model_for_each_order_of_imports(folder: Path) -> None:
    code = f"""
import importlib.util, sys
import slap_fast
assert not {{"torch", "transformers", "numpy"}} & sys.modules.keys()
importlib.util.find_spec("transformers.models.auto.configuration_auto")
from transformers import CONFIG_MAPPING, AutoFeatureExtractor, AutoModel
for _ in range(2):
    assert type(AutoFeatureExtractor.from_pretrained({str(folder)!r})).__name__ == "SlapFeatureExtractor"
    assert type(AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=False)).__name__ == "SlapModel"
    del sys.modules["slap_fast"]
    CONFIG_MAPPING._extra_content.clear()
    import slap_fast
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_embeddings_equal_those_of_slap_to_the_bit_after_a_round_trip(folder: Path, tmp_path: Path) -> None:
    slap = SLAP.from_pretrained(folder)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    model.save_pretrained(tmp_path, state_dict={name: value + 0 for name, value in model.state_dict().items()})
    processor.save_pretrained(tmp_path)
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).settings() == (slap.objectives, slap.config)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == slap.config.text.max_length
    inputs = processor(text=TEXTS, audio=CLIPS, sampling_rate=16_000)
    audio, text = slap.encode_audio(CLIPS, sampling_rate=16_000), slap.encode_text(TEXTS)
    with torch.no_grad():
        output = model(**inputs)
        left = processor.tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
        assert torch.equal(model.get_text_features(**left).pooler_output, text)
    assert torch.equal(output.audio_embeds, audio)
    assert torch.equal(output.text_embeds, text)
    torch.testing.assert_close(output.logits_per_audio, slap.logit_scale() * audio @ text.T)
    assert torch.equal(output.logits_per_text, output.logits_per_audio.T)
    pairs = processor(text=TEXTS[:3], audio=CLIPS, sampling_rate=16_000)
    loss = model(**pairs, return_loss=True).loss
    torch.testing.assert_close(loss, contrastive_loss(audio, text[:3], slap.logit_scale()).loss)
    loss.backward()
    assert model.slap.audio_encoder.patch_embedding.weight.grad.abs().sum() > 0
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_zero_shot_pipeline_ranks_as_slap_does(folder: Path) -> None:
    slap = SLAP.from_pretrained(folder)
    classify: Any = pipeline("zero-shot-audio-classification", model=str(folder))
    found: Any = classify(
        [clip.numpy() for clip in CLIPS], candidate_labels=TEXTS, hypothesis_template="{}", batch_size=2
    )
    similarity = slap.encode_audio(CLIPS, sampling_rate=16_000) @ slap.encode_text(TEXTS).T
    expected = (similarity * slap.logit_scale()).softmax(-1)
    for clip, scores in enumerate(found):
        by_label = torch.tensor([next(one["score"] for one in scores if one["label"] == text) for text in TEXTS])
        torch.testing.assert_close(by_label, expected[clip].detach(), rtol=0, atol=1e-5)
        assert scores[0]["label"] == TEXTS[int(similarity[clip].argmax())]


def test_a_published_model_loads_by_its_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer().running() as hub:
        hub.connect(monkeypatch, tmp_path)
        hub.add("me/tiny", folder)
        model, processor = AutoModel.from_pretrained("me/tiny"), AutoProcessor.from_pretrained("me/tiny")
        with torch.no_grad():
            found = model.get_audio_features(**processor(audio=CLIPS, sampling_rate=16_000)).pooler_output
    assert torch.equal(found, SLAP.from_pretrained(folder).encode_audio(CLIPS, sampling_rate=16_000))


def test_what_cannot_be_honored_is_an_error(folder: Path, tmp_path: Path) -> None:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with pytest.raises(ModelError, match="does not take quantization_config; leave them out"):
        AutoModel.from_pretrained(folder, quantization_config={"bits": 4})
    with pytest.raises(ValueError, match="text is an empty list"):
        processor(text=[])
    other = AutoConfig.from_pretrained(folder)
    other.audio = other.audio | {"window_columns": 8}
    with pytest.raises(ModelError, match=r"config differs from the config\.json"):
        AutoModel.from_pretrained(folder, config=other)
    with pytest.raises(ModelError, match="which SlapConfig does not describe"):
        AutoModel.from_config(slap_fast.SlapConfig())
    with pytest.raises(ValueError, match="text 0 has 41 tokens; this model takes 1 to 40"):
        model.get_text_features(torch.ones(1, 41, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"input_lengths is \[9\]; it must have 1 lengths from 1 to 8"):
        model.get_audio_features(torch.zeros(1, 8), torch.tensor([9]))
    with pytest.raises(ValueError, match="does not take input_features"):
        model.get_audio_features(torch.zeros(1, 800), input_features=torch.zeros(1, 8))
    with pytest.raises(ValueError, match="neither text nor audio"):
        processor()
    tiny_slap(("self_distillation",)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no audio pooling.*objectives\.contrastive_weight=0"):
        AutoModel.from_pretrained(tmp_path).get_audio_features(torch.zeros(1, 800))
