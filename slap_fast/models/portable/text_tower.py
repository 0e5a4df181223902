"""Text tower of SLAP for padded texts: the transformers encoder with its own attention, and pooling."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from slap_fast.models.portable.audio_tower import pool
from slap_fast.models.slap import SLAP


class PortableTextTower(nn.Module):
    """`[N, L]` token ids and attention mask (1 for tokens, 0 for padding) to `[N, D]` embeddings of unit length.

    Every text has at least one token.
    """

    def __init__(self, model: SLAP) -> None:
        super().__init__()
        from transformers import AutoModel

        own = model.text_encoder.model
        encoder = AutoModel.from_config(
            copy.deepcopy(own.config), attn_implementation="eager", dtype=own.dtype, trust_remote_code=False
        )
        encoder.load_state_dict(own.state_dict())
        self.encoder = encoder.eval()
        self.pooling = model.text_pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # Positions count the tokens, on whichever side the padding is.
        positions = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions)
        return F.normalize(pool(self.pooling, output.last_hidden_state, attention_mask == 0), dim=-1)
