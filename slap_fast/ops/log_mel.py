"""Packed waveforms to packed log-mel frames, differentiable with respect to the waveform.

The convention is a `MelConfig`; its defaults follow Kaldi's `compute-fbank-feats` with a Hann window, as AST uses it.
"""

from __future__ import annotations

import functools
import json
import math
from itertools import pairwise

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.mel_config import MelConfig

# Frames are windowed and transformed this many at a time: an hour-long clip never stands in memory as frames, and what
# one step leaves is still in the cache for the next.
_CHUNK_FRAMES = 1024


@torch.library.custom_op("slap_fast::log_mel", mutates_args=())
def _log_mel(waveform: Tensor, cu_seqlens: Tensor, config: str, total_frames: int, backend: str) -> Tensor:
    return _forward_torch(waveform, cu_seqlens, _parse(config), total_frames)


@_log_mel.register_fake
def _(waveform: Tensor, cu_seqlens: Tensor, config: str, total_frames: int, backend: str) -> Tensor:
    return waveform.new_empty(total_frames, _parse(config).n_mels)


@torch.library.custom_op("slap_fast::log_mel_backward", mutates_args=())
def _log_mel_backward(grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, config: str, backend: str) -> Tensor:
    return _backward_torch(grad, waveform, cu_seqlens, _parse(config))


@_log_mel_backward.register_fake
def _(grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, config: str, backend: str) -> Tensor:
    return torch.empty_like(waveform)


dispatch.register("log_mel", [dispatch.Backend(name="torch")])


@functools.lru_cache(maxsize=64)
def _parse(config: str) -> MelConfig:
    return MelConfig(**json.loads(config))


@functools.lru_cache(maxsize=32)
def _mel_filters(config: MelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[n_fft // 2 + 1, n_mels]` triangles, evenly spaced and linear in Kaldi's mel scale, 1127 ln(1 + f / 700)."""

    def mel(frequency: Tensor | float) -> Tensor:
        return 1127.0 * torch.log1p(torch.as_tensor(frequency, dtype=torch.float64) / 700.0)

    nyquist = config.sample_rate / 2
    low, high = mel(config.f_min), mel(config.f_max or nyquist)
    edges = low + (high - low) * torch.arange(config.n_mels + 2, dtype=torch.float64) / (config.n_mels + 1)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64) * (config.sample_rate / config.n_fft)
    position = mel(bins)[:, None]  # [n_bins, 1]
    rising = (position - left) / (center - left)
    falling = (right - position) / (right - center)
    return torch.minimum(rising, falling).clamp_min(0.0).to(device, dtype)


@functools.lru_cache(maxsize=32)
def _window(config: MelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    periodic = config.window == "hann_periodic"
    return torch.hann_window(config.win_length, periodic=periodic, dtype=torch.float64).to(device, dtype)


def _frame_starts(cu_seqlens: Tensor, config: MelConfig, total_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each frame its first sample, its clip's end (both `[F]` int64), and its index in its clip."""
    lengths = cu_seqlens.diff()
    counts = torch.where(lengths > 0, 1 + (lengths - config.win_length).clamp_min(0) // config.hop_length, 0)
    clip = torch.repeat_interleave(counts, output_size=total_frames)
    first_frame = counts.cumsum(0) - counts
    index = torch.arange(total_frames, device=cu_seqlens.device) - first_frame[clip]
    return cu_seqlens[clip] + index * config.hop_length, cu_seqlens[clip + 1], index


def _sample_positions(start: Tensor, end: Tensor, config: MelConfig) -> tuple[Tensor, Tensor]:
    """`[C, win_length]` positions into the waveform, and whether each lies inside its clip."""
    positions = start[:, None] + torch.arange(config.win_length, device=start.device)
    return positions, positions < end[:, None]


def _spectrum(frames: Tensor, config: MelConfig) -> Tensor:
    """`[C, win_length]` samples to the complex `[C, n_fft // 2 + 1]` spectrum of the conditioned, windowed frames."""
    if config.remove_dc_offset:
        frames = frames - frames.mean(dim=1, keepdim=True)
    if config.preemphasis:
        previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = frames - config.preemphasis * previous
    return torch.fft.rfft(frames * _window(config, frames.dtype, frames.device), n=config.n_fft)


def _mel_energies(spectrum: Tensor, config: MelConfig) -> tuple[Tensor, Tensor]:
    """The power or magnitude spectrum, and its `[C, n_mels]` filterbank energies."""
    energy = spectrum.real.square() + spectrum.imag.square()
    if config.power == 1.0:
        energy = energy.sqrt()
    return energy, energy @ _mel_filters(config, energy.dtype, energy.device)


def _spectrum_backward(grad: Tensor, config: MelConfig) -> Tensor:
    """The transpose of `_spectrum`: complex `[C, n_fft // 2 + 1]` to `[C, win_length]`."""
    # irfft counts each inner bin twice and divides by n_fft; the transpose of rfft does neither.
    weights = torch.full((grad.shape[1],), config.n_fft / 2, dtype=grad.real.dtype, device=grad.device)
    weights[0] = config.n_fft
    if config.n_fft % 2 == 0:
        weights[-1] = config.n_fft
    frames = torch.fft.irfft(grad * weights, n=config.n_fft)[:, : config.win_length]
    frames = frames * _window(config, frames.dtype, frames.device)
    if config.preemphasis:
        following = torch.nn.functional.pad(frames[:, 1:], (0, 1))
        following[:, 0] += frames[:, 0]
        frames = frames - config.preemphasis * following
    if config.remove_dc_offset:
        frames = frames - frames.mean(dim=1, keepdim=True)
    return frames


def _forward_torch(waveform: Tensor, cu_seqlens: Tensor, config: MelConfig, total_frames: int) -> Tensor:
    output = waveform.new_empty(total_frames, config.n_mels)
    starts, ends, _ = _frame_starts(cu_seqlens, config, total_frames)
    for begin in range(0, total_frames, _CHUNK_FRAMES):
        chunk = slice(begin, begin + _CHUNK_FRAMES)
        positions, inside = _sample_positions(starts[chunk], ends[chunk], config)
        frames = waveform[positions.clamp_max(waveform.shape[0] - 1)] * inside
        _, mel = _mel_energies(_spectrum(frames, config), config)
        output[chunk] = (mel.clamp_min(config.log_floor).log() - config.mean) / config.std
    return output


def _backward_torch(grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, config: MelConfig) -> Tensor:
    n_samples, total_frames = waveform.shape[0], grad.shape[0]
    # One slot more than there are samples, for what the zero padding of a short clip receives.
    grad_waveform = waveform.new_zeros(n_samples + 1)
    starts, ends, indices = _frame_starts(cu_seqlens, config, total_frames)
    overlap = math.ceil(config.win_length / config.hop_length)
    for begin in range(0, total_frames, _CHUNK_FRAMES):
        chunk = slice(begin, begin + _CHUNK_FRAMES)
        positions, inside = _sample_positions(starts[chunk], ends[chunk], config)
        frames = waveform[positions.clamp_max(n_samples - 1)] * inside
        spectrum = _spectrum(frames, config)
        energy, mel = _mel_energies(spectrum, config)
        grad_mel = torch.where(mel > config.log_floor, grad[chunk] / (mel * config.std), 0.0)
        grad_energy = grad_mel @ _mel_filters(config, mel.dtype, mel.device).t()
        # The slope of the energy, over the spectrum itself. The magnitude has none at 0: a silent bin gets 0.
        slope = 2.0 if config.power == 2.0 else torch.where(energy > 0.0, 1.0 / energy, 0.0)
        grad_frames = _spectrum_backward(spectrum * (grad_energy * slope), config)
        targets = torch.where(inside, positions, n_samples)
        # Every `overlap`-th frame of a clip shares no sample with another, so each round adds without atomics.
        for phase in range(overlap):
            selected = (indices[chunk] % overlap == phase)[:, None]
            target = torch.where(selected, targets, n_samples).flatten()
            grad_waveform[target] = grad_waveform[target] + grad_frames.flatten()
    return grad_waveform[:n_samples].clone()


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    waveform, cu_seqlens, ctx.config, _, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(waveform, cu_seqlens)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    waveform, cu_seqlens = ctx.saved_tensors  # type: ignore[attr-defined]
    return _log_mel_backward(grad.contiguous(), waveform, cu_seqlens, ctx.config, ctx.backend), None, None, None, None  # type: ignore[attr-defined]


_log_mel.register_autograd(_backward, setup_context=_setup_context)


def log_mel(
    waveform: Tensor,
    cu_seqlens: Tensor,
    config: MelConfig,
    *,
    total_frames: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log-mel frames of packed clips.

    Args:
        waveform: `[S]` float32 or float64 samples in [-1, 1], clips end to end.
        cu_seqlens: `[N + 1]` int64 offsets of the clips on the device of `waveform`, from 0 to S.
        config: the convention; `config.num_frames(length)` is each clip's frame count.
        total_frames: the sum of those counts. Without it a GPU call waits for the device to read the lengths, and
            `torch.compile(fullgraph=True)` cannot trace the call.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        `[F, n_mels]` frames of the waveform's dtype, clips end to end.

    Raises:
        ValueError: wrong shape or dtype, offsets that do not rise from 0 to S, a `total_frames` that does not fit,
            or a backend that cannot serve. Offsets on a GPU are not read back, hence not checked, when
            `total_frames` is given.
    """
    if waveform.dim() != 1 or waveform.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"waveform is {waveform.dtype} of shape {tuple(waveform.shape)}; pass [S] float32 or float64 samples"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int64 or cu_seqlens.shape[0] < 1:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; pass [N + 1] int64 sample offsets"
        )
    if cu_seqlens.device != waveform.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, waveform on {waveform.device}; move one to the other")
    compiling = torch.compiler.is_compiling()
    if compiling and total_frames is None:
        raise ValueError("log_mel needs total_frames under torch.compile: the sum of config.num_frames(length)")
    if not compiling and (total_frames is None or cu_seqlens.device.type == "cpu"):
        expected = _validate_offsets(cu_seqlens.tolist(), waveform.shape[0], config)
        if total_frames is not None and total_frames != expected:
            raise ValueError(f"total_frames is {total_frames}, but the clips have {expected} frames")
        total_frames = expected
    assert total_frames is not None
    chosen = dispatch.select("log_mel", backend, device=waveform.device, dtype=waveform.dtype)
    return _log_mel(waveform.contiguous(), cu_seqlens.contiguous(), config.serialized, total_frames, chosen)


def _validate_offsets(offsets: list[int], n_samples: int, config: MelConfig) -> int:
    if offsets[0] != 0 or offsets[-1] != n_samples:
        raise ValueError(
            f"cu_seqlens runs from {offsets[0]} to {offsets[-1]}; it must run from 0 to the {n_samples} samples"
        )
    frames = 0
    for clip, (begin, end) in enumerate(pairwise(offsets)):
        if end < begin:
            raise ValueError(f"cu_seqlens falls from {begin} to {end} at clip {clip}; offsets must not decrease")
        frames += config.num_frames(end - begin)
    return frames
