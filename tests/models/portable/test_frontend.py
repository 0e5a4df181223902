from __future__ import annotations

import dataclasses

import pytest
import torch

from slap_fast.models.portable.frontend import PortableFrontend
from slap_fast.ops import MelConfig, log_mel_patches
from slap_fast.ops.log_mel.presets import PRESETS
from tests.models.builders import TINY


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_patches_equal_those_of_the_op_for_each_convention_and_length(preset: str | None) -> None:
    mel = MelConfig() if preset is None else MelConfig.preset(preset)
    patch_mels = next(size for size in (16, 20, 10, 1) if mel.n_mels % size == 0)
    config = dataclasses.replace(TINY, mel=mel, audio=dataclasses.replace(TINY.audio, patch_mels=patch_mels))
    frontend = PortableFrontend(config)
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 2, mel.win_length, mel.win_length + mel.hop_length, 7919, 20 * mel.hop_length * 16)
    for length in filter(config.num_tokens, lengths):
        clip = (torch.rand(length, generator=generator) - 0.5) * torch.linspace(0, 1, length)
        offsets = torch.tensor([0, length])
        for waveform in (clip, torch.zeros(length)):
            expected = log_mel_patches(waveform, offsets, mel, patch_frames=16, patch_mels=patch_mels)
            torch.testing.assert_close(frontend(waveform), expected, rtol=1e-3, atol=5e-3)
