"""Peak, energy and bad samples of each clip of a packed waveform, in one pass.

    stats = waveform_stats(waveform, cu_seqlens)    # [S] float32, [N + 1] int64
    stats.peak          # [N] float32, the largest |x|
    stats.mean_square   # [N] float64, the mean of x * x; 10 * log10 of it is the level in dB of full scale
    stats.nonfinite     # [N] int64, samples that are NaN or infinite; the other two leave them out

A clip without a finite sample has peak 0 and mean square 0. Sums are in float64. With the native backend the result of
a clip is the same bits in any batch, for any number of threads and any instruction set. Not differentiable: the results
carry no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.packed import bounded_offsets, checked_offsets
from slap_fast.ops.tensor_checks import aligned


class WaveformStats(NamedTuple):
    """Of each clip: `peak` `[N]` float32, `mean_square` `[N]` float64, `nonfinite` `[N]` int64."""

    peak: Tensor
    mean_square: Tensor
    nonfinite: Tensor


def _check(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, str]:
    if not isinstance(waveform, Tensor):
        raise ValueError(f"waveform is a {type(waveform).__name__}; pass a torch tensor")
    if waveform.dtype != torch.float32:
        raise ValueError(f"waveform is {waveform.dtype}; it must be torch.float32")
    if waveform.dim() != 1:
        raise ValueError(f"waveform has shape {tuple(waveform.shape)}; it must have one dimension")
    cu_seqlens = checked_offsets(
        "cu_seqlens", cu_seqlens, waveform.shape[0], waveform.device, torch.int64, of="samples"
    )
    chosen = dispatch.select("waveform_stats", backend, device=waveform.device)
    return waveform.detach().contiguous(), cu_seqlens.contiguous(), chosen


@custom_op("slap_fast::waveform_stats", check=_check)
def _waveform_stats(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return _BACKENDS[backend](waveform, cu_seqlens)


@_waveform_stats.register_fake
def _(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_stats(waveform, cu_seqlens)


def _empty_stats(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    clips = cu_seqlens.shape[0] - 1
    return (
        waveform.new_empty(clips),
        waveform.new_empty(clips, dtype=torch.float64),
        waveform.new_empty(clips, dtype=torch.int64),
    )


def _native(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    module = native.require()
    waveform = aligned(waveform)
    peak, mean_square, nonfinite = _empty_stats(waveform, cu_seqlens)
    module.waveform_stats(
        waveform=waveform.data_ptr(),
        total=waveform.numel(),
        cu_seqlens=cu_seqlens.data_ptr(),
        clips=peak.numel(),
        peak=peak.data_ptr(),
        mean_square=mean_square.data_ptr(),
        nonfinite=nonfinite.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return peak, mean_square, nonfinite


def _torch(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = waveform.numel()
    # Reading the offsets would stall a GPU: there, malformed ones are made harmless, and told by NaN.
    bounds = bounded_offsets(cu_seqlens, total)
    wrong = (bounds != cu_seqlens).any() | (bounds[0] != 0) | (bounds[-1] != total)

    finite = waveform.isfinite()
    magnitude = torch.where(finite, waveform, 0).abs()
    good = _segment_sum(finite.double(), bounds)
    energy = _segment_sum(magnitude.double().square_(), bounds)
    peak = torch.segment_reduce(magnitude, "max", offsets=bounds, unsafe=True, initial=0.0)
    peak = torch.where(wrong, torch.nan, peak)
    mean_square = torch.where(wrong, torch.nan, energy / good.clamp(min=1))
    return peak, mean_square, bounds.diff() - good.long()


def _segment_sum(values: Tensor, bounds: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=bounds, unsafe=True, initial=0.0)


_BACKENDS = {"native": _native, "torch": _torch}


def _not_on_cpu(*, device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"the waveform is on {device}; native code reads CPU memory"


dispatch.register(
    "waveform_stats",
    [
        dispatch.Backend("native", unavailable=native.unavailable, rejects=_not_on_cpu),
        dispatch.Backend("torch"),
    ],
)


def waveform_stats(waveform: Tensor, cu_seqlens: Tensor, *, backend: str = "auto") -> WaveformStats:
    """Peak |x|, mean square and count of non-finite samples of each clip.

    Args:
        waveform: `[S]` float32, N clips end to end.
        cu_seqlens: `[N + 1]` int64 or int32, on the same device: rises from 0 to S.
        backend: "auto", "native" (CPU) or "torch".

    Raises:
        ValueError: a wrong dtype, shape or device, a backend that cannot serve, or, on the CPU, a malformed
            `cu_seqlens`. On a GPU the offsets are not read, and malformed ones give NaN.
    """
    return WaveformStats(*_waveform_stats(*_check(waveform, cu_seqlens, backend)))
