"""A CLIP-style training loop in plain PyTorch with `slap_fast.ops.contrastive_loss`.

Two small towers learn to match pairs of vectors. Each rank holds a part of the batch; every item is contrasted with the
whole batch of all ranks. DDP averages gradients over ranks, which is the convention of the loss, so the number of ranks
changes the result by rounding only.

    python examples/clip_style_trainer.py --steps 100
    torchrun --nproc-per-node 2 examples/clip_style_trainer.py --steps 100
"""

from __future__ import annotations

import argparse
import math
import os
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from slap_fast.ops import contrastive_loss


class TwoTowers(nn.Module):
    def __init__(self, audio_features: int = 40, text_features: int = 24, width: int = 32) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(audio_features, 64), nn.GELU(), nn.Linear(64, width))
        self.text = nn.Sequential(nn.Linear(text_features, 64), nn.GELU(), nn.Linear(64, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return normalize(self.audio(audio), dim=-1), normalize(self.text(text), dim=-1), self.log_scale.exp()


def pairs(step: int, batch: int) -> tuple[Tensor, Tensor]:
    """`[B, 40]` and `[B, 24]`: two noisy views of the same 8 numbers, of the whole batch of a step."""
    views = torch.Generator().manual_seed(0)
    to_audio, to_text = torch.randn(8, 40, generator=views), torch.randn(8, 24, generator=views)
    generator = torch.Generator().manual_seed(step + 1)
    shared = torch.randn(batch, 8, generator=generator)
    return (
        shared @ to_audio + 0.1 * torch.randn(batch, 40, generator=generator),
        shared @ to_text + 0.1 * torch.randn(batch, 24, generator=generator),
    )


def train(steps: int, batch: int) -> tuple[float, float]:
    """Loss and accuracy of the last step, over all ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(TwoTowers())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        audio, text = (part.chunk(ranks)[rank] for part in pairs(step, batch))
        out = contrastive_loss(*model(audio, text), group=dist.group.WORLD)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    means = torch.stack([out.loss.detach(), out.accuracy])
    dist.all_reduce(means)
    loss, accuracy = (means / ranks).tolist()
    return loss, accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    loss, accuracy = train(options.steps, options.batch)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks: loss {loss:.6f}, accuracy {accuracy:.4f}")
    dist.destroy_process_group()
    # A thread of gloo frees the tensors of the last collective and needs the interpreter for that: if it is already
    # shutting down, the process aborts.
    time.sleep(0.1)
