"""PyTorch backend, any device: float32 and float64, sums in float64, no host synchronization."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.log_mel.normalization.call import NormalizationCall
from slap_fast.ops.packed import bounded_offsets, item_of_each

# Added to each deviation, as NeMo does: a silent bin stays finite.
DEVIATION_GUARD = 1e-5


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def forward(call: NormalizationCall) -> Tensor:
    """See `Backend.forward`."""
    frames, cu_frames, config = call.frames, call.cu_frames, call.mel
    clip = item_of_each(cu_frames, frames.shape[0])
    if config.dynamic_range is not None:
        peak = _clip_maxima(frames, cu_frames)[clip]
        frames = torch.maximum(frames, peak - config.dynamic_range)
    if config.normalize_per_clip:
        centered, _, divisor = _standardize(frames, cu_frames, clip)
        frames = (centered / divisor[clip]).to(frames.dtype)
    return (frames - config.mean) / config.std


def backward(call: NormalizationCall, grad: Tensor) -> Tensor:
    """See `Backend.backward`."""
    frames, cu_frames, config = call.frames, call.cu_frames, call.mel
    clip = item_of_each(cu_frames, frames.shape[0])
    grad = grad / config.std
    unlimited, limit, peak = frames, None, None
    if config.dynamic_range is not None:
        peak = _clip_maxima(frames, cu_frames)[clip]  # [F, 1]
        limit = peak - config.dynamic_range
        frames = torch.maximum(frames, limit)
    if config.normalize_per_clip:
        grad = _standardize_backward(grad.double(), frames, cu_frames, clip).to(frames.dtype)
    if limit is None or peak is None:
        return grad
    # The gradient of the limit goes to the maximum, in equal parts if several elements share it.
    passes = unlimited >= limit
    is_peak = unlimited == peak
    received = _clip_sums(torch.where(passes, 0.0, grad).double().sum(1, keepdim=True), cu_frames)  # [N, 1]
    shares = _clip_sums(is_peak.double().sum(1, keepdim=True), cu_frames)
    return torch.where(passes, grad, 0.0) + is_peak * (received / shares)[clip].to(grad.dtype)


def _clip_maxima(frames: Tensor, cu_frames: Tensor) -> Tensor:
    """`[N, 1]`: the maximum of each clip; NaN if it contains one."""
    bounds = bounded_offsets(cu_frames, frames.shape[0])
    return torch.segment_reduce(frames.amax(1, keepdim=True), "max", offsets=bounds, unsafe=True)


def _clip_sums(values: Tensor, cu_frames: Tensor) -> Tensor:
    """`[F, K]` to `[N, K]`."""
    bounds = bounded_offsets(cu_frames, values.shape[0])
    return torch.segment_reduce(values, "sum", offsets=bounds, unsafe=True, initial=0.0)


def _standardize(frames: Tensor, cu_frames: Tensor, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[F, n_mels]` frames minus the clip's mean, `[N, n_mels]` deviation, and deviation plus guard; all float64."""
    counts = cu_frames.diff()[:, None]
    values = frames.double()
    centered = values - (_clip_sums(values, cu_frames) / counts)[clip]
    # The deviation of a single frame is 0; clips without frames are never looked up.
    deviation = (_clip_sums(centered.square(), cu_frames) / (counts - 1).clamp_min(1)).sqrt()
    return centered, deviation, deviation + DEVIATION_GUARD


def _standardize_backward(grad: Tensor, frames: Tensor, cu_frames: Tensor, clip: Tensor) -> Tensor:
    counts = cu_frames.diff()[:, None]
    centered, deviation, divisor = _standardize(frames, cu_frames, clip)
    grad_mean = _clip_sums(grad, cu_frames) / counts
    # The slope of a deviation of 0 is taken as 0, not as infinite.
    slope = (counts - 1) * deviation * divisor.square()
    grad_deviation = _clip_sums(grad * centered, cu_frames) / slope
    grad_deviation = torch.where(deviation == 0.0, 0.0, grad_deviation)
    return (grad - grad_mean[clip]) / divisor[clip] - centered * grad_deviation[clip]
