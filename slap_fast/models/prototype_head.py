"""Self-distillation head: projects patch features to a bottleneck, to be scored against prototypes (DINOv2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slap_fast.config.model import PrototypeHeadConfig
from slap_fast.models.layers import Linear, initialize_weights


class PrototypeHead(nn.Module):
    """Three-layer GELU MLP; its output and the prototypes are L2-normalized, so scores are cosines."""

    def __init__(self, config: PrototypeHeadConfig, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(width, config.hidden),
            nn.GELU(),
            Linear(config.hidden, config.hidden),
            nn.GELU(),
            Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        self.apply(initialize_weights)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[M, width]` features to `[M, bottleneck]` and the prototypes `[K, bottleneck]`, both of unit length."""
        return F.normalize(self.mlp(features), dim=-1), F.normalize(self.prototypes, dim=-1)
