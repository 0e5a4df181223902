from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch

from slap_fast import native
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.models import encoding
from slap_fast.models.encoding import encode_features
from slap_fast.models.slap import SLAP
from slap_fast.ops import dispatch
from tests.models.builders import TINY, random_clips

SECONDS = [1.0, 0.005, 2.7, 0.3]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog barks at a bell", "rain falls on the roof while thunder rolls"], 300)
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=len(tokenizer)))
    model = SLAP(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.tokenizer = tokenizer
    return model


def test_an_embedding_is_bitwise_independent_of_batch_and_order(model):
    clips = random_clips(SECONDS)
    batched = model.encode_audio(clips)
    assert batched.shape == (4, 32)
    torch.testing.assert_close(batched.norm(dim=1), torch.ones(4))
    alone = torch.cat([model.encode_audio([clip]) for clip in clips])
    assert torch.equal(alone, batched)
    assert torch.equal(model.encode_audio(clips[::-1]).flip(0), batched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [32, 72])
def test_the_bits_of_an_embedding_depend_on_neither_its_pack_nor_the_threads(width, dtype):
    """On a CPU clips are packed where native code multiplies; at 72, no row fills whole vectors."""
    torch.manual_seed(0)
    audio = dataclasses.replace(TINY.audio, width=width, heads=3 if width == 72 else TINY.audio.heads, mlp_width=88)
    config = dataclasses.replace(TINY, audio=audio, text=dataclasses.replace(TINY.text, width=width))
    model = SLAP(config, objectives=("contrastive",)).eval().to(dtype)
    lengths = np.random.default_rng(0).gamma(1.0, 0.7, 60) + 0.001  # with the last two more than a pack
    clips = random_clips([*lengths.tolist(), 31.0, 0.2])
    threads = torch.get_num_threads()
    try:
        alone = torch.cat([model.encode_audio([clip], sampling_rate=16_000) for clip in clips])
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(model.encode_audio(clips, sampling_rate=16_000), alone)
        dense = model.encode_audio(clips[:9], sampling_rate=16_000, dense=True)
        for clip, columns in zip(clips, dense, strict=False):
            assert torch.equal(model.encode_audio(clip, sampling_rate=16_000, dense=True)[0], columns)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(native.isa() in (None, "baseline"), reason="PyTorch multiplies")
def test_short_clips_are_packed_on_a_cpu_unless_pytorch_multiplies(model, monkeypatch):
    packs = []
    record = lambda model, pack: packs.append(len(pack)) or encode_features(model, pack)  # noqa: E731
    monkeypatch.setattr(encoding, "encode_features", record)
    clips = random_clips([20.0, 20.0, 20.0, 20.0, 1.0])
    model.encode_audio(clips)
    model.encode_audio(clips, batch_seconds=40)
    with dispatch.preferring(linear="torch"):
        model.encode_audio(clips)
    model.train().encode_audio(clips)  # narrow layers are PyTorch's then
    model.eval()
    changed = copy.deepcopy(model)
    changed.audio_pooling.out = torch.nn.Linear(32, 32)
    changed.encode_audio(clips)
    assert packs == [3, 2, 2, 2, 1, *[1] * 15]


def test_packing_changes_an_embedding_by_rounding_only(model):
    clips = random_clips(SECONDS)
    with torch.inference_mode():
        features, tokens = encode_features(model, clips)
        packed = torch.nn.functional.normalize(model.audio_pooling(features, tokens), dim=-1)
    torch.testing.assert_close(packed, model.encode_audio(clips), rtol=0, atol=1e-5)


def test_files_arrays_and_int16_give_the_same_embedding(model, tmp_path):
    samples = (random_clips([0.7])[0] * 30_000).to(torch.int16)
    path = tmp_path / "clip.flac"
    soundfile.write(path, samples.numpy(), 16_000, subtype="PCM_16")
    variants = [samples, samples.numpy(), samples.float() / 32768, samples.numpy() / np.float64(32768), path, str(path)]
    embeddings = model.encode_audio(variants)
    for embedding in embeddings[1:]:
        assert torch.equal(embedding, embeddings[0])


def test_dense_embeddings_follow_the_clip_in_time(model):
    clips = random_clips([1.0, 3.2])
    dense = model.encode_audio(clips, dense=True)
    assert [columns.shape for columns in dense] == [(7, 32), (20, 32)]
    for columns in dense:
        torch.testing.assert_close(columns.norm(dim=1), torch.ones(len(columns)))
    times, similarity = model.similarity_over_time(clips[1], "a dog barks")
    assert times[0] == pytest.approx(0.08)
    assert times[1] - times[0] == pytest.approx(0.16)
    torch.testing.assert_close(similarity, dense[1] @ model.encode_text(["a dog barks"])[0])


def test_the_embedding_of_a_text_is_independent_of_the_batch(model):
    texts = ["a dog", "rain falls on the roof while thunder rolls", "", "bell"]
    batched = model.encode_text(texts)
    assert batched.shape == (4, 32)
    torch.testing.assert_close(torch.cat([model.encode_text([text]) for text in texts]), batched)
    torch.testing.assert_close(model.encode_text(texts, batch_size=3), batched)


def test_captions_follow_the_decoder_until_the_end_token_or_the_limit(model, monkeypatch):
    script = model.tokenizer("a dog barks")["input_ids"]

    prefix = []

    def decode(input_ids, state):
        (token,) = set(input_ids.tolist())
        prefix[:] = [token] if token == script[0] else [*prefix, token]
        assert prefix == script[: len(prefix)]
        following = torch.full_like(input_ids, script[len(prefix)])
        return torch.nn.functional.one_hot(following, len(model.tokenizer)).float()

    monkeypatch.setattr(model.caption_decoder, "step", decode)
    clips = random_clips([0.5, 1.0])
    assert model.caption(clips) == ["a dog barks", "a dog barks"]
    shortened = model.tokenizer.decode(script[1:3]).strip()
    assert model.caption(clips[:1], max_length=2) == [shortened]


def test_empty_input_gives_empty_output(model):
    assert model.encode_audio([]).shape == (0, 32)
    assert model.encode_audio([], dense=True) == []
    assert model.encode_text([]).shape == (0, 32)
    assert model.caption([]) == []


def test_a_saved_model_loads_with_the_same_outputs(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = SLAP.from_pretrained(tmp_path / "model")
    clips = random_clips([0.4])
    assert loaded.config == model.config
    assert torch.equal(loaded.encode_audio(clips), model.encode_audio(clips))
    assert torch.equal(loaded.encode_text(["a bell"]), model.encode_text(["a bell"]))
    assert loaded.caption(clips, max_length=4) == model.caption(clips, max_length=4)
    assert not list((tmp_path / "model").glob(".*"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 100), r"audio\[1\] has shape \(2, 100\)"),
        (torch.zeros(0), r"audio\[1\] has shape \(0,\)"),
        (torch.tensor([0.0, float("nan")]), r"audio\[1\] holds NaN"),
        (torch.zeros(10, dtype=torch.int64), r"audio\[1\] is torch.int64"),
        ("/nowhere.wav", "/nowhere.wav"),
    ],
)
def test_bad_audio_is_an_error_with_its_index(model, bad, message):
    with pytest.raises(ValueError, match=message):
        model.encode_audio([torch.zeros(100), bad])


def test_bad_text_is_an_error_with_its_index(model):
    with pytest.raises(ValueError, match=r"texts\[1\] is a int"):
        model.encode_text(["a", 3])


def test_towers_of_unequal_width_are_an_error():
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, width=16))
    with pytest.raises(ValueError, match="the text tower is 16 wide, the audio tower 32"):
        SLAP(config)


def test_a_folder_that_is_not_a_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        SLAP.from_pretrained(tmp_path)


def test_damaged_files_are_an_error(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="damaged"):
        SLAP.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        SLAP.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_an_error(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["audio"]["mlp_width"] = 52
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"audio_encoder\.blocks\.0\.mlp\.\w+\.weight has shape"):
        SLAP.from_pretrained(tmp_path)
    config["audio"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unknown key audio\.depth"):
        SLAP.from_pretrained(tmp_path)
