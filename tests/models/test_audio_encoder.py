from __future__ import annotations

import dataclasses

import pytest
import torch

from slap_fast.models.audio_encoder import AudioEncoder
from slap_fast.ops.log_mel.patches import log_mel_patches
from tests.models.builders import TINY, audio_layouts, random_clips

SECONDS = [0.01, 3.1, 0.16, 1.0]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = AudioEncoder(TINY).double()
    for parameter in encoder.parameters():
        # Larger than initial weights, so that attention and positions affect the output.
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return encoder


def _encode(encoder, clips, masked=None):
    samples, _, tokens = audio_layouts(clips)
    patches = log_mel_patches(torch.cat(clips).double(), samples.cu_seqlens, TINY.mel)
    return encoder(patches, tokens, masked), tokens


def test_a_clip_has_25_tokens_per_second_and_at_least_one_column():
    assert TINY.num_tokens(10 * 16_000) == 4 * 63
    assert TINY.num_tokens(1) == 4
    assert TINY.num_tokens(0) == 0


def test_features_of_a_clip_are_independent_of_the_batch(encoder):
    clips = random_clips(SECONDS)
    packed, tokens = _encode(encoder, clips)
    for clip, features in zip(clips, packed.split(list(tokens.lengths)), strict=True):
        torch.testing.assert_close(_encode(encoder, [clip])[0], features)
    reverse, reverse_tokens = _encode(encoder, clips[::-1])
    torch.testing.assert_close(torch.cat(reverse.split(list(reverse_tokens.lengths))[::-1]), packed)


def test_only_global_layers_attend_beyond_the_window(encoder):
    (clip,) = random_clips([5.0])
    changed = clip.clone()
    changed[-300:] = 0.0  # within the last column of patches

    def changed_columns(layers):
        shallow = AudioEncoder(dataclasses.replace(TINY, audio=dataclasses.replace(TINY.audio, layers=layers))).double()
        shallow.load_state_dict(encoder.state_dict(), strict=False)
        difference = (_encode(shallow, [clip])[0] - _encode(shallow, [changed])[0]).abs().amax(1)
        return difference.reshape(-1, 4).amax(1) > 0  # [columns]

    # A window of four columns has two on each side: through two local layers the last column affects four before it.
    assert changed_columns(2).nonzero().flatten().tolist() == [27, 28, 29, 30, 31]
    assert changed_columns(3).all()


def test_masked_tokens_hide_their_patches(encoder):
    clips = random_clips([0.4, 0.2])
    _, tokens = _encode(encoder, clips)
    everything = torch.arange(tokens.total)
    other = random_clips([0.4, 0.2], seed=1)
    torch.testing.assert_close(_encode(encoder, clips, everything)[0], _encode(encoder, other, everything)[0])
    half = torch.arange(0, tokens.total, 2)
    assert not torch.allclose(_encode(encoder, clips, half)[0], _encode(encoder, other, half)[0])


def test_checkpointing_does_not_change_gradients(encoder):
    clips = random_clips([0.5, 0.3])

    def gradients():
        encoder.zero_grad()
        _encode(encoder, clips, torch.tensor([1, 5]))[0].square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}

    plain = gradients()
    encoder.gradient_checkpointing = True
    try:
        checkpointed = gradients()
    finally:
        encoder.gradient_checkpointing = False
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, msg=name)


def test_there_are_no_biases(encoder):
    assert not [name for name, _ in encoder.named_parameters() if "bias" in name]


def test_invalid_dimensions_are_an_error():
    with pytest.raises(ValueError, match=r"audio\.width \(30\)"):
        dataclasses.replace(TINY.audio, width=30)
    with pytest.raises(ValueError, match=r"mel\.n_mels \(40\)"):
        dataclasses.replace(TINY, mel=dataclasses.replace(TINY.mel, n_mels=40))
