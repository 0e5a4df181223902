"""X-ARES encoder: what `check_audio_encoder` of xares 0.1.3 demands, and padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slap_fast.evaluation.leaderboards.x_ares import SlapEncoder
from slap_fast.models.encoding import encode_features
from slap_fast.models.slap import SLAP
from tests.models.builders import TINY


@pytest.fixture
def model() -> SLAP:
    torch.manual_seed(0)
    return SLAP(TINY).eval()


def test_the_encoder_follows_the_protocol(model: SLAP, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)

    class MyRunEncoder(SlapEncoder):
        def __init__(self) -> None:
            super().__init__(tmp_path)

    encoder = MyRunEncoder()
    assert isinstance(encoder, torch.nn.Module)
    assert type(encoder).__name__.endswith("Encoder")
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16_000, TINY.audio.width, 160.0)
    audio = torch.randn(2, 50_000)
    encoded = encoder(audio)
    # 3.125 s: 311 frames in columns of 16.
    assert (encoded.shape, encoded.dtype, encoded.requires_grad) == ((2, 20, TINY.audio.width), torch.float32, False)
    features, _ = encode_features(model, [audio[1]])
    torch.testing.assert_close(encoded[1], features.detach().unflatten(0, (20, 4)).mean(1))
    torch.testing.assert_close(encoder(audio[1]), encoded[1:])


def test_padding_is_left_out_where_a_mask_is_given(model: SLAP) -> None:
    encoder = SlapEncoder(model)
    audio, mask = torch.randn(2, 50_000), torch.ones(2, 50_000)
    mask[1, 20_000:] = 0
    encoded, valid = encoder(audio, mask)
    assert valid.sum(1).tolist() == [20, 8]
    torch.testing.assert_close(encoded[1, :8], encoder(audio[1, :20_000])[0])
    assert not encoded[1, 8:].any()
    with pytest.raises(ValueError, match=r"audio\[1\] has no samples"):
        encoder(audio, mask * torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\); it must be \[B, T\]"):
        encoder(torch.zeros(1, 2, 3))
