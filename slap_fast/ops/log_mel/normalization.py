"""The part of a log-mel convention that looks at a clip as a whole: dynamic range, mean and deviation of each mel bin.

Sums run over one clip in float64, in order: the result of a clip is the same bits in any batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.packed import bounded_offsets, checked_offsets, item_of_each
from slap_fast.ops.tensor_checks import aligned, require_like

# NeMo's, which keeps a silent bin finite.
_DEVIATION_GUARD = 1e-5


def _validate(frames: Tensor, cu_frames: Tensor, config: MelConfig, backend: str) -> tuple[Tensor, str]:
    """The offsets in int64, and the backend that serves."""
    if frames.dim() != 2 or frames.shape[1] != config.n_mels or frames.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"frames is {frames.dtype} of shape {tuple(frames.shape)}; pass [F, {config.n_mels}] float32 or float64"
        )
    cu_frames = checked_offsets("cu_frames", cu_frames, frames.shape[0], frames.device, torch.int64, of="frames")
    return cu_frames, dispatch.select("mel_normalization", backend, device=frames.device, dtype=frames.dtype)


def _check(frames: Tensor, cu_frames: Tensor, config: str, backend: str) -> tuple:
    cu_frames, chosen = _validate(frames, cu_frames, MelConfig.parse(config), backend)
    return frames.contiguous(), cu_frames.contiguous(), config, chosen


def _check_backward(grad: Tensor, *forward: Any) -> tuple:
    frames, *others = _check(*forward)
    require_like("grad", grad, frames)
    return grad.contiguous(), frames, *others


@custom_op("slap_fast::mel_normalization", check=_check, rule=autocast.full)
def _mel_normalization(frames: Tensor, cu_frames: Tensor, config: str, backend: str) -> Tensor:
    forward = _forward_native if backend == "native" else _forward_torch
    return forward(frames, cu_frames, MelConfig.parse(config))


@_mel_normalization.register_fake
def _(frames: Tensor, cu_frames: Tensor, config: str, backend: str) -> Tensor:
    return torch.empty_like(frames)


@custom_op("slap_fast::mel_normalization_backward", check=_check_backward)
def _mel_normalization_backward(grad: Tensor, frames: Tensor, cu_frames: Tensor, config: str, backend: str) -> Tensor:
    return _backward_torch(grad, frames, cu_frames, MelConfig.parse(config))


@_mel_normalization_backward.register_fake
def _(grad: Tensor, frames: Tensor, cu_frames: Tensor, config: str, backend: str) -> Tensor:
    return torch.empty_like(frames)


def _forward_native(frames: Tensor, cu_frames: Tensor, config: MelConfig) -> Tensor:
    module = native.require()
    frames = aligned(frames)
    normalized = torch.empty_like(frames)
    module.normalize_mels(
        frames=frames.data_ptr(),
        total=frames.shape[0],
        n_mels=frames.shape[1],
        cu_frames=cu_frames.data_ptr(),
        clips=cu_frames.shape[0] - 1,
        dynamic_range=config.dynamic_range,
        deviation_guard=_DEVIATION_GUARD if config.normalize_per_clip else None,
        mean=config.mean,
        deviation=config.std,
        normalized=normalized.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return normalized


def _forward_torch(frames: Tensor, cu_frames: Tensor, config: MelConfig) -> Tensor:
    clip = item_of_each(cu_frames, frames.shape[0])
    if config.dynamic_range is not None:
        peak = _clip_maxima(frames, cu_frames)[clip]
        frames = torch.maximum(frames, peak - config.dynamic_range)
    if config.normalize_per_clip:
        centered, _, deviation = _standardize(frames, cu_frames, clip)
        frames = (centered / deviation[clip]).to(frames.dtype)
    return (frames - config.mean) / config.std


def _backward_torch(grad: Tensor, frames: Tensor, cu_frames: Tensor, config: MelConfig) -> Tensor:
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
    # What the limit receives goes to the maximum, in equal parts where several values share it.
    passes = unlimited >= limit
    is_peak = unlimited == peak
    received = _clip_sums(torch.where(passes, 0.0, grad).double().sum(1, keepdim=True), cu_frames)  # [N, 1]
    shares = _clip_sums(is_peak.double().sum(1, keepdim=True), cu_frames)
    return torch.where(passes, grad, 0.0) + is_peak * (received / shares)[clip].to(grad.dtype)


def _clip_maxima(frames: Tensor, cu_frames: Tensor) -> Tensor:
    """`[N, 1]`: the largest value of each clip; NaN where it has one."""
    return torch.segment_reduce(frames.amax(1, keepdim=True), "max", offsets=_bounds(cu_frames, frames), unsafe=True)


def _clip_sums(values: Tensor, cu_frames: Tensor) -> Tensor:
    """`[F, K]` to `[N, K]`."""
    return torch.segment_reduce(values, "sum", offsets=_bounds(cu_frames, values), unsafe=True, initial=0.0)


def _bounds(cu_frames: Tensor, values: Tensor) -> Tensor:
    return bounded_offsets(cu_frames, values.shape[0])


def _standardize(frames: Tensor, cu_frames: Tensor, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The frames less their clip's mean `[F, n_mels]`, its deviation, and that with its guard; all float64."""
    counts = cu_frames.diff()[:, None]
    values = frames.double()
    centered = values - (_clip_sums(values, cu_frames) / counts)[clip]
    # One frame deviates from nothing; clips without any are never looked up.
    deviation = (_clip_sums(centered.square(), cu_frames) / (counts - 1).clamp_min(1)).sqrt()  # [N, n_mels]
    return centered, deviation, deviation + _DEVIATION_GUARD


def _standardize_backward(grad: Tensor, frames: Tensor, cu_frames: Tensor, clip: Tensor) -> Tensor:
    counts = cu_frames.diff()[:, None]
    centered, deviation, divisor = _standardize(frames, cu_frames, clip)
    grad_mean = _clip_sums(grad, cu_frames) / counts
    # The slope of a deviation of 0 is taken as 0, not as infinite.
    slope = (counts - 1) * deviation * divisor.square()
    grad_deviation = _clip_sums(grad * centered, cu_frames) / slope
    grad_deviation = torch.where(deviation == 0.0, 0.0, grad_deviation)
    return (grad - grad_mean[clip]) / divisor[clip] - centered * grad_deviation[clip]


def _not_native(*, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the frames are on {device}; native code reads CPU memory"
    return None if dtype == torch.float32 else f"the frames are {dtype}; native code takes float32"


dispatch.register(
    "mel_normalization",
    [
        dispatch.Backend("native", unavailable=native.unavailable, rejects=_not_native),  # backward: PyTorch
        dispatch.Backend("torch"),
    ],
)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    frames, cu_frames, ctx.config, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(frames, cu_frames)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    frames, cu_frames = ctx.saved_tensors  # type: ignore[attr-defined]
    grad = _mel_normalization_backward(grad.contiguous(), frames, cu_frames, ctx.config, ctx.backend)  # type: ignore[attr-defined]
    return grad, None, None, None


_mel_normalization.register_autograd(_backward, setup_context=_setup_context)


def normalize_clips_backward(grad: Tensor, frames: Tensor, cu_frames: Tensor, config: MelConfig) -> Tensor:
    """The gradient of `normalize_clips` with respect to `frames`, where autograd is not at work."""
    return _backward_torch(grad, frames, cu_frames, config)


def normalize_clips(frames: Tensor, cu_frames: Tensor, config: MelConfig, *, backend: str = "auto") -> Tensor:
    """Limit each clip to its `dynamic_range`, normalise its mel bins over time, subtract `mean` and divide by `std`.

    Differentiable: a value below the limit passes its gradient to the clip's maximum, evenly to all that share it; a
    deviation of 0 has slope 0.

    Args:
        frames: `[F, n_mels]` float32 or float64 log-mel frames, clips end to end.
        cu_frames: `[N + 1]` int64 or int32 frame offsets of the clips on the same device, rising from 0 to F.
        config: which of the steps apply, and by how much.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        `[F, n_mels]` of the dtype of `frames`. A NaN reaches what it is compared with: its clip with `dynamic_range`,
        its mel bin of the clip with `normalize_per_clip`.

    Raises:
        ValueError: a wrong dtype, shape or device, a backend that cannot serve, or, on the CPU, offsets that do not
            rise from 0 to F. Those on a GPU are not read back.
    """
    (frames,) = autocast.cast(autocast.full, frames)
    cu_frames, chosen = _validate(frames, cu_frames, config, backend)
    return _mel_normalization(frames.contiguous(), cu_frames.contiguous(), config.serialized, chosen)
