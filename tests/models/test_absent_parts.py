"""A model without the parts of an objective: saved, loaded, and clear where a part is missing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig

from slap_fast.config.model import OBJECTIVES
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.errors import ModelError
from slap_fast.models.slap import SLAP
from tests.models.builders import TINY, random_clips

CONTRASTIVE = r"trained with objectives\.contrastive_weight=0; use a model that was trained with"


def saved_and_loaded(folder: Path, *objectives: str) -> SLAP:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog barks at a bell", "rain falls on the roof while thunder rolls"], 300)
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=len(tokenizer)))
    model = SLAP(config, objectives=objectives)
    model.tokenizer = tokenizer
    model.save_pretrained(folder)
    loaded = SLAP.from_pretrained(folder)
    assert loaded.objectives == tuple(name for name in OBJECTIVES if name in objectives)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert len(loaded.state_dict()) == len(model.state_dict())
    return loaded


def test_contrastive_only_embeds_and_does_not_caption(tmp_path: Path) -> None:
    model, clips = saved_and_loaded(tmp_path, "contrastive"), random_clips([0.5, 1.0])
    assert model.encode_audio(clips).shape == model.encode_text(["a dog", "rain"]).shape == (2, 32)
    assert model.caption_decoder is None
    with pytest.raises(
        ModelError, match=r"no caption decoder, because it was trained with objectives.caption_weight=0"
    ):
        model.caption(clips)


def test_the_audio_tower_alone_embeds_with_the_same_bits_and_without_transformers(tmp_path: Path) -> None:
    whole, clips = saved_and_loaded(tmp_path, *OBJECTIVES), random_clips([0.5, 1.0])
    audio = SLAP.from_pretrained(tmp_path, towers="audio")
    assert torch.equal(audio.encode_audio(clips), whole.encode_audio(clips))
    assert not any(name.startswith(("text_", "caption_")) for name in audio.state_dict())
    loaded_with = r"because it was loaded with towers='audio'"
    with pytest.raises(ModelError, match=rf"this model has no text tower, {loaded_with}"):
        audio.encode_text("a dog")
    with pytest.raises(ModelError, match=rf"this model has no caption decoder, {loaded_with}"):
        audio.caption(clips)
    with pytest.raises(ModelError, match=r"loaded with towers='audio' cannot be saved"):
        audio.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(ValueError, match="towers is 'text'; choose one of 'all', 'audio'"):
        SLAP.from_pretrained(tmp_path, towers="text")  # type: ignore[arg-type]
    code = (
        "import sys; from slap_fast import SLAP; SLAP.from_pretrained(sys.argv[1], towers='audio'); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize("objective", ["caption", "self_distillation"])
def test_without_the_contrastive_objective_only_dense_features_and_captions_are_left(
    tmp_path: Path, objective: str
) -> None:
    model, clips = saved_and_loaded(tmp_path, objective), random_clips([0.5, 1.0])
    assert not (tmp_path / "text_config").exists()
    calls: dict[str, Any] = {
        "no audio pooling": lambda: model.encode_audio(clips),
        "no text tower": lambda: model.encode_text("a dog"),
        "no text tower, ": lambda: model.similarity_over_time(clips[0], "a dog"),
        "no logit scale": lambda: model(clips, ["a dog", "rain"]),
    }
    for part, call in calls.items():
        with pytest.raises(ModelError, match=rf"this model has {part.strip(', ')}, because it was {CONTRASTIVE}"):
            call()
    for columns in model.encode_audio(clips, dense=True):
        torch.testing.assert_close(columns.norm(dim=1), torch.ones(len(columns)))
    if objective == "caption":
        assert len(model.caption(clips, max_length=3)) == 2
        return
    with pytest.raises(ModelError, match="no caption decoder"):
        model.caption(clips)


def test_a_folder_that_does_not_name_its_objectives_has_all_parts(tmp_path: Path) -> None:
    saved_and_loaded(tmp_path, *OBJECTIVES)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "objectives"}))
    assert SLAP.from_pretrained(tmp_path).objectives == OBJECTIVES
    for damaged in ([], ["captions"], "caption"):
        path.write_text(json.dumps(values | {"objectives": damaged}))
        with pytest.raises(ModelError, match=r"config.json: is damaged: objectives is .*; copy it again"):
            SLAP.from_pretrained(tmp_path)
    path.write_text(json.dumps(values | {"objectives": ["contrastive"]}))
    with pytest.raises(ModelError, match=r"has caption_decoder\S+, which a model of this config.json does not have"):
        SLAP.from_pretrained(tmp_path)


def test_captions_alone_take_the_vocabulary_of_the_text_tower_without_its_weights(tmp_path: Path) -> None:
    ModernBertConfig(vocab_size=77, hidden_size=32, pad_token_id=0).save_pretrained(tmp_path / "text")
    text = dataclasses.replace(TINY.text, pretrained=str(tmp_path / "text"))
    model = SLAP(dataclasses.replace(TINY, text=text), objectives=["caption"])
    assert (
        model.caption_decoder.token_embedding.num_embeddings == model.config.text.vocab_size == model.vocab_size == 77
    )
    with pytest.raises(ModelError, match=r"model.text.pretrained is 'nowhere', which is neither"):
        SLAP(dataclasses.replace(TINY, text=dataclasses.replace(text, pretrained="nowhere")), objectives=["caption"])
