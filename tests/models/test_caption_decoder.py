from __future__ import annotations

import pytest
import torch

from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.ops.packed import PackedLayout
from tests.models.builders import TINY

CAPTIONS, CLIPS = [5, 1, 4], [8, 12, 4]


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    decoder = CaptionDecoder(TINY.caption, vocab_size=50, feature_width=24).double()
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return decoder


def _inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (sum(CAPTIONS),), generator=generator)
    features = torch.randn(sum(CLIPS), 24, generator=generator, dtype=torch.float64)
    return ids, features


def _decode(decoder, ids, features):
    return decoder(ids, PackedLayout.from_lengths(CAPTIONS), features, PackedLayout.from_lengths(CLIPS))


def test_a_token_depends_only_on_earlier_tokens(decoder):
    ids, features = _inputs()
    logits = _decode(decoder, ids, features)
    assert logits.shape == (10, 50)
    changed = ids.clone()
    changed[2] = (changed[2] + 1) % 50
    moved = (_decode(decoder, changed, features) - logits).abs().amax(1) > 1e-12
    assert moved.tolist() == [False, False, True, True, True] + [False] * 5


def test_a_caption_depends_only_on_its_own_clip(decoder):
    ids, features = _inputs()
    logits = _decode(decoder, ids, features)
    changed = features.clone()
    changed[8:20] *= -1.0
    moved = (_decode(decoder, ids, changed) - logits).abs().amax(1) > 1e-12
    assert moved.tolist() == [False] * 5 + [True] + [False] * 4


def test_readout_is_called_with_the_hidden_states_and_the_tied_vocabulary(decoder):
    ids, features = _inputs()
    layouts = PackedLayout.from_lengths(CAPTIONS), PackedLayout.from_lengths(CLIPS)
    hidden, vocabulary = decoder(ids, layouts[0], features, layouts[1], readout=lambda *arguments: arguments)
    assert vocabulary is decoder.token_embedding.weight
    torch.testing.assert_close(hidden @ vocabulary.t(), _decode(decoder, ids, features))
