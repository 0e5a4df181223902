"""Reference contrastive loss: one process, all logits, in the dtype of the inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ContrastiveReference(NamedTuple):
    loss: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def contrastive_loss(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    kind: str = "infonce",
    ids: Tensor | None = None,
) -> ContrastiveReference:
    """`[N, D]` embeddings to scalars."""
    clips = len(audio)
    ids = torch.arange(clips) if ids is None else ids
    positive = ids[:, None] == ids[None, :]
    similarity = audio @ text.T
    logits = logit_scale.reshape(()) * similarity + (0.0 if logit_bias is None else logit_bias.reshape(()))
    if kind == "infonce":
        target = positive.to(logits.dtype) / positive.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    else:
        loss = -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / clips

    hits = 0
    for matrix in (similarity, similarity.T):
        for row, relevant in zip(matrix, positive, strict=True):
            hits += int((row[relevant].max() > row[~relevant]).all())
    positive_means = [row[relevant].mean() for row, relevant in zip(similarity, positive, strict=True)]
    negative_means = [row[~relevant].mean().nan_to_num() for row, relevant in zip(similarity, positive, strict=True)]
    return ContrastiveReference(
        loss,
        torch.tensor(hits / (2 * clips), dtype=similarity.dtype),
        torch.stack(positive_means).mean().detach(),
        torch.stack(negative_means).mean().detach(),
    )
