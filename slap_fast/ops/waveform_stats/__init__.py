"""Peak, energy and non-finite samples of each clip of a packed waveform, in one pass.

    stats = waveform_stats(waveform, cu_seqlens)    # [S] float32, [N + 1] int64
    stats.peak          # [N] float32, max |x|
    stats.mean_square   # [N] float64, mean of x * x; 10 * log10 of it is the level in dB relative to full scale
    stats.nonfinite     # [N] int64, number of NaN and infinite samples, which the other two leave out

A clip without a finite sample has peak 0 and mean square 0. Sums are float64. With the native backend the result of a
clip has the same bits in any batch, with any number of threads and any instruction set. Not differentiable: the results
carry no gradient.
"""

from __future__ import annotations

from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.waveform_stats import backend_native, backend_torch
from slap_fast.ops.waveform_stats.call import Backend, WaveformStats, check, empty_stats

# In order of preference.
BACKENDS: dict[str, Backend] = {"native": backend_native, "torch": backend_torch}
dispatch.register(
    "waveform_stats",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op("slap_fast::waveform_stats", check=check)
def _waveform_stats(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].stats(waveform, cu_seqlens)


@_waveform_stats.register_fake
def _(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return empty_stats(waveform, cu_seqlens)


def waveform_stats(waveform: Tensor, cu_seqlens: Tensor, *, backend: str = "auto") -> WaveformStats:
    """Peak |x|, mean square and number of non-finite samples of each clip.

    Args:
        waveform: `[S]` float32, N clips end to end.
        cu_seqlens: `[N + 1]` int64 or int32, on the same device, rising from 0 to S.
        backend: "auto", or a name that `slap-fast info` lists.

    Raises:
        ValueError: a wrong dtype, shape or device, a backend that cannot serve, or, on the CPU, a malformed
            `cu_seqlens`. Offsets on a GPU are not read back; malformed ones give NaN.
    """
    return WaveformStats(*_waveform_stats(*check(waveform, cu_seqlens, backend)))
