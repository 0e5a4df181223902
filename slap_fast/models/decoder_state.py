"""Key/value cache of the caption decoder: what one step of decoding needs of the clips and of the earlier tokens.

The keys and values of the audio features are computed once for a batch of clips, packed, and shared by all beams of a
clip. Those of the tokens are appended step by step. All rows are equally long, so neither has padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slap_fast.models.layers import Segments
from slap_fast.models.token_cache import TokenCache
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.rotary import apply_rotary
from slap_fast.ops.tensor_checks import accumulator

_POSITIONS = 64  # of the first table of rotary angles; doubled when they are used up


class DecoderState:
    """State of a batch of clips; `CaptionDecoder.start` makes it and `CaptionDecoder.step` advances it.

    Args:
        cross: keys and values of the features in each layer, `[T, heads, D]` each.
        features: of the clips in them.
        theta: base of the rotary wavelengths.

    Attributes:
        rows: of the clips: as many as there are beams, 0 for a clip whose caption is finished.
    """

    def __init__(self, cross: list[tuple[Tensor, Tensor]], features: Segments, theta: float) -> None:
        self.cross = cross
        self.features = features
        self.cached = [TokenCache() for _ in cross]
        self._theta = theta
        self._rotation: Tensor | None = None
        self._device = features.cu_seqlens.device
        self.rows = self._layout([1] * (features.cu_seqlens.shape[0] - 1))

    def select(self, rows: Sequence[int], per_clip: Sequence[int]) -> None:
        """Keeps these rows, in this order.

        Args:
            rows: positions in the present rows, sorted by clip.
            per_clip: number of rows of each clip of the batch; 0 for a finished one.
        """
        index = torch.tensor(rows, dtype=torch.int64).to(self._device, non_blocking=True)
        for cached in self.cached:
            cached.select(index)
        self.rows = self._layout(per_clip)

    def rotation(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[D / 2]` of the next position: the angles of `apply_rotary`, which starts at 0."""
        position = self.cached[0].length
        if self._rotation is None or position >= self._rotation.shape[0]:
            keys = self.cross[0][0]
            unit = keys.new_zeros(max(2 * position, _POSITIONS), 1, keys.shape[2], dtype=accumulator(keys.dtype))
            unit[..., : keys.shape[2] // 2] = 1.0  # rotates to the cosine, and the sine in the other half
            layout = PackedLayout.from_lengths([unit.shape[0]], device=self._device)
            self._rotation = apply_rotary(unit, unit, layout.cu_seqlens, theta=self._theta)[0][:, 0]
        cos, sin = self._rotation[position].chunk(2)
        return cos, sin

    def _layout(self, per_clip: Sequence[int]) -> Segments:
        return Segments.of(PackedLayout.from_lengths(per_clip, device=self._device))
