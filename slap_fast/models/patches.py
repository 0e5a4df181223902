"""Packed log-mel frames cut into patches, in token order: time first, then frequency (SLAP, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.packing import PackedLayout


def patchify(
    frames: Tensor,
    frame_layout: PackedLayout,
    token_layout: PackedLayout,
    *,
    patch_frames: int,
    patch_mels: int,
    padding: float,
) -> Tensor:
    """Cut each clip into `patch_frames` x `patch_mels` patches without overlap.

    Args:
        frames: `[F, n_mels]`.
        frame_layout: the clips in `frames`.
        token_layout: the clips in the result, `ceil(frames / patch_frames) * n_mels / patch_mels` tokens each.
        padding: value of the frames that fill a clip's last patch.

    Returns:
        `[T, patch_frames * patch_mels]`; tokens of a column in time stand together, lowest frequency first, and a
        token's values run over time, then over mel bins.
    """
    n_mels = frames.shape[1]
    rows = n_mels // patch_mels
    column_offsets = token_layout.cu_seqlens.long() // rows
    columns = token_layout.total // rows
    counts = column_offsets.diff()
    clip = torch.repeat_interleave(counts, output_size=columns)
    column = torch.arange(columns, device=frames.device) - column_offsets[clip]
    ends = frame_layout.cu_seqlens.long()
    first = ends[clip] + column * patch_frames
    position = first[:, None] + torch.arange(patch_frames, device=frames.device)  # [C, patch_frames]
    inside = position < ends[clip + 1][:, None]
    if frames.shape[0] == 0:
        return frames.new_empty(0, patch_frames * patch_mels)
    gathered = frames[position.clamp_max(frames.shape[0] - 1)]  # [C, patch_frames, n_mels]
    gathered = torch.where(inside[:, :, None], gathered, padding)
    return gathered.unflatten(2, (rows, patch_mels)).transpose(1, 2).flatten(2).flatten(0, 1)
