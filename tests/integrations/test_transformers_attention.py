"""Hugging Face models on packed input through `varlen_attention` equal the same models on one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from slap_fast.integrations import transformers_attention
from slap_fast.ops import PackedLayout

SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "attention_dropout": 0.0,
    "initializer_range": 0.3,  # so that attention is not uniform
    "pad_token_id": 0,
}
NO_SPECIAL_TOKENS: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
LENGTHS = [1, 60, 7, 33]

CONFIGS: dict[str, Callable[[], Any]] = {
    "modernbert": lambda: transformers.ModernBertConfig(
        **SMALL,
        **NO_SPECIAL_TOKENS,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        local_attention=8,
        mlp_dropout=0.0,
    ),
    "bert": lambda: transformers.BertConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "llama, grouped queries": lambda: transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    "mistral, causal window": lambda: transformers.MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=5),
}


def _pair(config: Any, auto: Any = transformers.AutoModel) -> tuple[Any, Any]:
    """The packed model, and a model of the same weights with the attention of transformers."""
    torch.manual_seed(0)
    packed = auto.from_config(config, attn_implementation=transformers_attention.register())
    plain = auto.from_config(type(config).from_dict(config.to_dict()), attn_implementation="sdpa")
    plain.load_state_dict(packed.state_dict())
    return packed.train(), plain.train()


def _ids(lengths: list[int] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 100, (length,), generator=generator) for length in lengths]


def _packed_arguments(lengths: list[int] = LENGTHS) -> dict[str, Any]:
    layout = PackedLayout.from_lengths(lengths)
    return {
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": layout.cu_seqlens,
        "max_length_q": layout.max_seqlen,
    }


def _assert_same(packed: Tensor, plain: Tensor, models: tuple[Any, Any]) -> None:
    """Compare outputs `[T, width]` and the gradients of all weights."""
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
    grad = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for model, out in zip(models, (packed, plain), strict=True):
        out.backward(grad)
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 10
    largest = max(float(expected.norm()) for expected in gradients[1].values())
    for name, expected in gradients[1].items():
        # The bias of keys does not change the softmax: its gradient is pure rounding.
        assert float((gradients[0][name] - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-6 * largest, name


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_one_by_one_forward_and_backward(name: str) -> None:
    model, plain = _pair(CONFIGS[name]())
    sequences = _ids()
    out = model(input_ids=torch.cat(sequences)[None], **_packed_arguments()).last_hidden_state[0]
    expected = torch.cat([plain(input_ids=sequence[None]).last_hidden_state[0] for sequence in sequences])
    _assert_same(out, expected, (model, plain))


@pytest.mark.parametrize(
    ("name", "reach"), [("modernbert", (4, 4)), ("mistral, causal window", (4, 0)), ("bert", (39, 39))]
)
def test_a_layer_attends_to_exactly_its_window(name: str, reach: tuple[int, int]) -> None:
    """ModernBERT's local attention of 8 is 4 to each side; Mistral's window of 5 counts the token itself."""
    config = CONFIGS[name]()
    config.num_hidden_layers = 1
    if name == "modernbert":
        config.layer_types = ["sliding_attention"]
    model, plain = _pair(config)
    (sequence,) = _ids([40])
    for tested, arguments in ((model, _packed_arguments([40])), (plain, {})):
        embeddings = tested.get_input_embeddings()(sequence[None]).detach().requires_grad_()
        out = tested(inputs_embeds=embeddings, **arguments).last_hidden_state
        (grad,) = torch.autograd.grad(out[0, 20].square().sum(), embeddings)
        seen = grad[0].abs().amax(-1).nonzero().flatten().tolist()
        assert (seen[0], seen[-1]) == (max(0, 20 - reach[0]), min(39, 20 + reach[1]))


def test_a_whisper_encoder_runs_unchanged_and_its_layers_run_packed() -> None:
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=40,
        vocab_size=100,
        dropout=0.0,
        init_std=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    model, plain = (each.encoder for each in _pair(config))
    features = torch.randn(1, 8, 80, generator=torch.Generator().manual_seed(0))
    out = model(features, cu_seq_lens_q=torch.tensor([0, 40], dtype=torch.int32), max_length_q=40).last_hidden_state
    _assert_same(out[0], plain(features).last_hidden_state[0], (model, plain))

    # The model pads each clip to a fixed length; its layers do not need that.
    clips = [torch.randn(1, length, 32, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
    arguments = _packed_arguments()
    del arguments["position_ids"]
    packed = torch.cat(clips, dim=1)
    for layer in model.layers:
        packed = layer(packed, None, **arguments)
    expected = []
    for clip in clips:
        for layer in plain.layers:
            clip = layer(clip, None)
        expected.append(clip[0])
    _assert_same(packed[0], torch.cat(expected), (model.layers, plain.layers))


# In the second case encoder and decoder have equally many tokens.
@pytest.mark.parametrize("source", [[9, 2, 30, 4], [30, 10, 60, 1], LENGTHS])
def test_a_decoder_attends_to_itself_and_to_a_packed_encoder(source: list[int]) -> None:
    config = transformers.BartConfig(
        vocab_size=100,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        dropout=0.0,
        init_std=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model, plain = (each.decoder for each in _pair(config))
    for each in (model, plain):
        # BART numbers positions along the whole packed row, not per sequence.
        torch.nn.init.zeros_(each.embed_positions.weight).requires_grad_(False)
    features = [torch.randn(length, 32, generator=torch.Generator().manual_seed(length)) for length in source]
    keys = PackedLayout.from_lengths(source)
    sequences, arguments = _ids(), _packed_arguments()
    del arguments["position_ids"]
    arguments |= {"cu_seq_lens_k": keys.cu_seqlens, "max_length_k": keys.max_seqlen}
    out = model(
        input_ids=torch.cat(sequences)[None],
        encoder_hidden_states=torch.cat(features)[None],
        use_cache=False,
        **arguments,
    ).last_hidden_state[0]
    expected = [
        plain(input_ids=ids[None], encoder_hidden_states=each[None], use_cache=False).last_hidden_state[0]
        for ids, each in zip(sequences, features, strict=True)
    ]
    _assert_same(out, torch.cat(expected), (model, plain))


@pytest.mark.parametrize("name", ["position_bias", "s_aux", "softcap"])
def test_arguments_that_change_the_scores_are_rejected(name: str) -> None:
    q = torch.randn(1, 2, 5, 16)
    arguments: dict[str, Any] = {"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32), "max_length_q": 5}
    attend = transformers_attention._attention
    assert attend(torch.nn.Identity(), q, q, q, None, **arguments | {name: None})[0].shape == (1, 5, 2, 16)
    with pytest.raises(ValueError, match=f"has no {name}, which Identity asks for"):
        attend(torch.nn.Identity(), q, q, q, None, **arguments | {name: torch.zeros(1)})


def test_t5_with_its_position_bias_is_rejected() -> None:
    config = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    model = transformers.T5EncoderModel._from_config(config, attn_implementation=transformers_attention.register())
    arguments = _packed_arguments()
    del arguments["position_ids"]
    with pytest.raises(ValueError, match="position_bias, which T5Attention"):
        model(input_ids=torch.cat(_ids())[None], **arguments)


def test_dropout_and_a_mask_are_rejected() -> None:
    q = torch.randn(1, 2, 5, 16)
    arguments: dict[str, Any] = {"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32), "max_length_q": 5}
    with pytest.raises(ValueError, match=r"no attention dropout; set it to 0 \(it is 0.1\)"):
        transformers_attention._attention(torch.nn.Identity(), q, q, q, None, dropout=0.1, **arguments)
    with pytest.raises(ValueError, match="cu_seq_lens_q separates the sequences"):
        transformers_attention._attention(torch.nn.Identity(), q, q, q, torch.zeros(5, 5), **arguments)
