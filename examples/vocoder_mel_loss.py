"""Log-mel as a differentiable loss: trains a small vocoder that turns mel frames back into samples.

Clips of different durations are packed end to end, so no frame of padding enters the loss. The log-mel convention is
HiFi-GAN's (arXiv 2010.05646); the loss is its mel-spectrogram loss, the mean absolute difference of log-mel frames.

    python examples/vocoder_mel_loss.py --steps 100
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from slap_fast.ops import MelConfig, PackedLayout, log_mel

HOP = 256
HIFI_GAN = MelConfig(
    sample_rate=22_050,
    n_fft=1024,
    win_length=1024,
    hop_length=HOP,
    window="hann_periodic",
    frame_span="n_fft",
    padding="reflect",
    pad_length=(1024 - HOP) // 2,  # one frame for each hop of samples
    remove_dc_offset=False,
    preemphasis=0.0,
    power=1.0,
    power_guard=1e-9,
    n_mels=80,
    f_min=0.0,
    f_max=8000.0,
    mel_scale="slaney",
    mel_norm="slaney",
    log_floor=1e-5,
)


class Vocoder(nn.Module):
    """Maps each mel frame to the samples of one hop."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(80, width), nn.GELU(), nn.Linear(width, HOP), nn.Tanh())

    def forward(self, mel: Tensor) -> Tensor:
        return self.layers(mel / 10).flatten()  # [F, 80] -> [F * HOP]


def drum_hits(frames: list[int]) -> Tensor:
    """`[S]` packed samples: decaying noise, two hits a second."""
    clips = []
    for count in frames:
        time = torch.arange(count * HOP) / HIFI_GAN.sample_rate
        clips.append(0.3 * torch.randn(count * HOP) * torch.exp(-8 * (time % 0.5)))
    return torch.cat(clips)


def train(steps: int) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    frames = [40, 75, 120]
    samples = PackedLayout.from_lengths([count * HOP for count in frames], dtype=torch.int64)
    with torch.no_grad():
        target = log_mel(drum_hits(frames), samples.cu_seqlens, HIFI_GAN)  # [F, 80]
    vocoder = Vocoder()
    optimizer = torch.optim.Adam(vocoder.parameters(), lr=2e-3)
    losses = []
    for _ in range(steps):
        generated = log_mel(vocoder(target), samples.cu_seqlens, HIFI_GAN)
        loss = (generated - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    losses = train(parser.parse_args().steps)
    print(f"mel loss of the first step {losses[0]:.3f}, of the last step {losses[-1]:.3f}")
