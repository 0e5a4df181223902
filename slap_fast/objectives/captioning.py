"""The decoder predicts each caption token from those before it and the audio."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import collectives
from slap_fast.ops.linear_cross_entropy import linear_cross_entropy


def captioning(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Token cross-entropy, averaged over the caption tokens of all ranks in `group`.

    Args:
        hidden: `[T, D]` floating point, what the decoder gives at each position.
        weight: `[V, D]`, the vocabulary projection.
        targets: `[T]` int64, the token after each position, or `ignore_index`.
        group: None: this process alone.

    Returns:
        Scalar: this rank's share, scaled so that the mean over ranks, of values as of gradients, is the global loss; 0
        where no rank has a token.

    Raises:
        ValueError: as `linear_cross_entropy`.
    """
    local_sum = linear_cross_entropy(hidden, weight, targets, ignore_index=ignore_index, reduction="sum")
    tokens = collectives.sum_over_ranks((targets != ignore_index).sum(), group)
    return local_sum * (collectives.world_size(group) / tokens.clamp_min(1).to(local_sum.dtype))
