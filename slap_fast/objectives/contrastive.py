"""Audio and caption of a clip embed alike, those of different clips apart."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from slap_fast.ops.contrastive import ContrastiveOutput, contrastive_loss


def contrastive(
    audio_embedding: Tensor,
    text_embedding: Tensor,
    logit_scale: Tensor,
    clip_ids: Tensor,
    *,
    kind: str = "infonce",
    logit_bias: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    exchange: str = "gather",
) -> ContrastiveOutput:
    """The contrastive loss over the clips of all ranks in `group`, with its metrics.

    Args:
        audio_embedding: `[N, D]` floating point, not normalised; here they are, in float32 (float64 for float64).
        text_embedding: `[N, D]`, row i the caption of clip i.
        logit_scale: `[]` or `[1]`, the multiplier of cosines.
        clip_ids: `[N]` int64; clips with equal ids are positives of each other.
        kind: "infonce" or "sigmoid".
        logit_bias: `[]` or `[1]`, for "sigmoid".
        group: None: this process alone.
        exchange: "gather" or "ring", as `contrastive_loss` has it.

    Raises:
        ValueError: as `contrastive_loss`.
    """
    return contrastive_loss(
        _normalize(audio_embedding),
        _normalize(text_embedding),
        logit_scale,
        logit_bias,
        kind=kind,
        ids=clip_ids,
        group=group,
        exchange=exchange,
    )


def _normalize(embedding: Tensor) -> Tensor:
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)
