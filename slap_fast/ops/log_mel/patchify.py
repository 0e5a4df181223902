"""Packed log-mel frames cut into patches, in token order: time first, then frequency (SLAP, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slap_fast.ops.packed import item_of_each


@dataclass(frozen=True)
class PatchGrid:
    """Where the patches of N packed clips lie.

    A clip has `ceil(frames / patch_frames)` columns of `n_mels / patch_mels` tokens. Tokens of a column stand together,
    lowest frequency first; a token's values run over time, then over mel bins.

    Attributes:
        cu_frames: `[N + 1]` int64 frame offsets of the clips.
        total_frames: their last.
        columns: columns of all clips.
        patch_frames: frames of a patch.
        patch_mels: mel bins of a patch.
    """

    cu_frames: Tensor
    total_frames: int
    columns: int
    patch_frames: int
    patch_mels: int

    def cu_columns(self) -> Tensor:
        """`[N + 1]` int64 column offsets of the clips."""
        counts = (self.cu_frames.diff() + self.patch_frames - 1) // self.patch_frames
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def patchify(frames: Tensor, grid: PatchGrid, *, padding: float) -> Tensor:
    """Cut `[F, n_mels]` frames into `[T, patch_frames * patch_mels]` patches without overlap.

    Args:
        frames: of all clips, end to end.
        grid: which frames are a clip's.
        padding: value of the frames that fill a clip's last column.
    """
    n_mels = frames.shape[1]
    if grid.total_frames == 0:
        return frames.reshape(0, grid.patch_frames * grid.patch_mels)  # a gradient still finds its way
    cu_columns = grid.cu_columns()
    clip = item_of_each(cu_columns, grid.columns)
    column = torch.arange(grid.columns, device=frames.device) - cu_columns[clip]
    first = grid.cu_frames[clip] + column * grid.patch_frames
    position = first[:, None] + torch.arange(grid.patch_frames, device=frames.device)  # [C, patch_frames]
    inside = position < grid.cu_frames[clip + 1][:, None]
    gathered = frames[position.clamp_max(grid.total_frames - 1)]  # [C, patch_frames, n_mels]
    gathered = torch.where(inside[:, :, None], gathered, padding)
    rows = n_mels // grid.patch_mels
    return gathered.unflatten(2, (rows, grid.patch_mels)).transpose(1, 2).flatten(2).flatten(0, 1)


def unpatchify(patches: Tensor, grid: PatchGrid, n_mels: int) -> Tensor:
    """The transpose of `patchify`: `[T, patch_frames * patch_mels]` to `[F, n_mels]`, without what was padding."""
    columns = patches.view(grid.columns, n_mels // grid.patch_mels, grid.patch_frames, grid.patch_mels)
    every_frame = columns.transpose(1, 2).reshape(grid.columns * grid.patch_frames, n_mels)
    clip = item_of_each(grid.cu_frames, grid.total_frames)
    index = torch.arange(grid.total_frames, device=patches.device) - grid.cu_frames[clip]
    return every_frame[grid.cu_columns()[clip] * grid.patch_frames + index]
