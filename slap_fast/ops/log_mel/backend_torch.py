"""PyTorch backend, any device: float32 and float64, forward and backward, no host synchronization.

Frames are gathered, transformed and reduced `_CHUNK_FRAMES` at a time: memory for frames does not grow with the length
of a clip, and the output of one step is still in the cache for the next.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from slap_fast.ops.log_mel import tables
from slap_fast.ops.log_mel.call import LogMelCall, frame_dtype
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.packed import item_of_each

_CHUNK_FRAMES = 1024


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def forward(call: LogMelCall, total_frames: int) -> Tensor:
    """See `Backend.forward`."""
    waveform, config = call.waveform, call.mel
    output = waveform.new_empty(total_frames, config.n_mels, dtype=frame_dtype(waveform))
    # Autocast would compute the mel product in 16 bits.
    with torch.autocast(waveform.device.type, enabled=False):
        clips = _Clips(call, total_frames)
        for begin in range(0, total_frames, _CHUNK_FRAMES):
            chunk = slice(begin, begin + _CHUNK_FRAMES)
            _, mel = _mel_energies(_spectrum(clips.frames(chunk), config), config)
            output[chunk] = _logarithm(mel, config)
    return output


def backward(call: LogMelCall, grad: Tensor) -> Tensor:
    """See `Backend.backward`. The same bits at every call."""
    waveform, config = call.waveform, call.mel
    grad_waveform = torch.zeros_like(waveform)
    with torch.autocast(waveform.device.type, enabled=False):
        clips = _Clips(call, grad.shape[0])
        for begin in range(0, grad.shape[0], _CHUNK_FRAMES):
            chunk = slice(begin, begin + _CHUNK_FRAMES)
            spectrum = _spectrum(clips.frames(chunk), config)
            energy, mel = _mel_energies(spectrum, config)
            grad_mel = _logarithm_backward(grad[chunk], mel, config)
            grad_energy = grad_mel @ _mel_filters(config, mel.dtype, mel.device)
            # d energy / d spectrum, divided by the spectrum. A magnitude of 0 has none: 0.
            slope = 2.0 if config.power == 2.0 else torch.where(energy > 0.0, 1.0 / energy, 0.0)
            clips.add_frames(grad_waveform, chunk, _spectrum_backward(spectrum * (grad_energy * slope), config))
        return clips.waveform_backward(grad_waveform)


class _Clips:
    """Positions of the frames of packed clips in the waveform, and their samples."""

    def __init__(self, call: LogMelCall, total_frames: int) -> None:
        waveform, cu_seqlens, cu_frames, _ = call
        self.config = config = call.mel
        self.cu_seqlens = cu_seqlens
        clip = item_of_each(cu_frames, total_frames)  # [F]
        index = torch.arange(total_frames, device=cu_frames.device) - cu_frames[clip]
        self.begins = cu_seqlens[clip]
        self.ends = cu_seqlens[clip + 1]
        self.starts = self.begins + config.first_sample + index * config.hop_length
        self.scale = config.input_scale
        if waveform.dtype == torch.int16:
            self.scale /= 32768.0
        self.waveform = waveform
        if self._emphasizes_clips:
            self.waveform = self._scaled(waveform)
            self.waveform = self.waveform - config.preemphasis * self._previous(self.waveform)
            self.scale = 1.0

    @property
    def _emphasizes_clips(self) -> bool:
        return self.config.preemphasis != 0.0 and self.config.preemphasis_scope == "clip"

    def _scaled(self, samples: Tensor) -> Tensor:
        if samples.dtype == torch.int16:
            samples = samples.float()
        return samples if self.scale == 1.0 else samples * self.scale

    def _previous(self, waveform: Tensor) -> Tensor:
        """`[S]`: for each sample the one before it in its clip, 0 for the first."""
        shifted = waveform.new_zeros(waveform.shape[0] + 1)
        shifted[1:] = waveform
        return shifted.index_fill_(0, self.cu_seqlens, 0.0)[:-1]

    def _next(self, waveform: Tensor) -> Tensor:
        """`[S]`: for each sample the one after it in its clip, 0 for the last."""
        shifted = waveform.new_zeros(waveform.shape[0] + 1)
        shifted[:-1] = waveform
        return shifted.index_fill_(0, self.cu_seqlens, 0.0)[1:]

    def frames(self, chunk: slice) -> Tensor:
        """`[C, win_length]` samples."""
        edges = self._edges(chunk)
        if edges is None:
            return self._padded_frames(chunk, slice(None))
        # Copying whole rows is many times faster than gathering single samples.
        last = self.waveform.shape[0] - self.config.win_length
        starts = self.starts[chunk].clamp(0, last)
        frames = self._scaled(self.waveform.unfold(0, self.config.win_length, 1).index_select(0, starts))
        frames[edges] = self._padded_frames(chunk, edges)
        return frames

    def add_frames(self, waveform: Tensor, chunk: slice, frames: Tensor) -> None:
        """The transpose of `frames`: add `[C, win_length]`, in order, to the samples that were read.

        Frames overlap, and one frame may contain a reflected sample twice.
        """
        edges = self._edges(chunk)
        if edges is None:
            positions, inside = self._padded_positions(chunk, slice(None))
            frames = frames if inside is None else torch.where(inside, frames, 0.0)
        else:
            positions = self._positions(self.starts[chunk])
            positions[edges], inside = self._padded_positions(chunk, edges)
            if inside is not None:
                frames[edges] = torch.where(inside, frames[edges], 0.0)
        # Deterministic on each device: on a CPU one-dimensional index_add_ is a plain loop, while on a GPU it adds
        # atomically and an accumulating index_put_ sorts first. Swapped, neither is deterministic.
        if waveform.device.type == "cpu":
            waveform.index_add_(0, positions.flatten(), frames.flatten())
        else:
            waveform.index_put_((positions.flatten(),), frames.flatten(), accumulate=True)

    def _edges(self, chunk: slice) -> Tensor | None:
        """`[E]`: the frames that reach beyond their clip; None: any may, as finding them would wait for a GPU."""
        window = self.config.win_length
        if self.waveform.device.type != "cpu" or self.waveform.shape[0] < window:
            return None
        starts = self.starts[chunk]
        return ((starts < self.begins[chunk]) | (starts + window > self.ends[chunk])).nonzero()[:, 0]

    def _positions(self, starts: Tensor) -> Tensor:
        return starts[:, None] + torch.arange(self.config.win_length, device=starts.device)

    def _padded_positions(self, chunk: slice, rows: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """`[R, win_length]`: positions of the samples, and which of them are not padding zeros (None: all)."""
        positions = self._positions(self.starts[chunk][rows])
        begins, ends = self.begins[chunk][rows, None], self.ends[chunk][rows, None]
        if self.config.padding in ("none", "zeros"):
            inside = (positions >= begins) & (positions < ends)
            return torch.minimum(torch.maximum(positions, begins), ends - 1), inside
        length = ends - begins
        repeats_edge = self.config.padding == "kaldi"
        period = 2 * length if repeats_edge else (2 * length - 2).clamp_min(1)
        phase = torch.remainder(positions - begins, period)
        return begins + torch.where(phase < length, phase, period - int(repeats_edge) - phase), None

    def _padded_frames(self, chunk: slice, rows: Tensor | slice) -> Tensor:
        positions, inside = self._padded_positions(chunk, rows)
        frames = self._scaled(self.waveform[positions])
        # Not a product: the sample in place of a zero may be NaN.
        return frames if inside is None else torch.where(inside, frames, 0.0)

    def waveform_backward(self, grad: Tensor) -> Tensor:
        """The gradient of the waveform from that of the samples that `frames` reads."""
        if self._emphasizes_clips:
            grad = grad - self.config.preemphasis * self._next(grad)
        return grad if self.config.input_scale == 1.0 else grad * self.config.input_scale


@functools.lru_cache(maxsize=32)
def _mel_filters(config: MelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[n_mels, n_fft // 2 + 1]`."""
    return torch.from_numpy(tables.mel_filters(config).copy()).to(device, dtype)


@functools.lru_cache(maxsize=32)
def _window(config: MelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[win_length]`."""
    return torch.from_numpy(tables.window(config).copy()).to(device, dtype)


def _emphasizes_frames(config: MelConfig) -> bool:
    return config.preemphasis != 0.0 and config.preemphasis_scope == "frame"


def _spectrum(frames: Tensor, config: MelConfig) -> Tensor:
    """`[C, win_length]` samples, conditioned and windowed, to the complex `[C, n_fft // 2 + 1]` spectrum."""
    if config.remove_dc_offset:
        frames = frames - frames.mean(dim=1, keepdim=True)
    if _emphasizes_frames(config):
        previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = frames - config.preemphasis * previous
    return torch.fft.rfft(frames * _window(config, frames.dtype, frames.device), n=config.n_fft)


def _spectrum_backward(grad: Tensor, config: MelConfig) -> Tensor:
    """The transpose of `_spectrum`: complex `[C, n_fft // 2 + 1]` to `[C, win_length]`."""
    # irfft counts each inner bin twice and divides by n_fft; the transpose of rfft does neither.
    weights = torch.full((grad.shape[1],), config.n_fft / 2, dtype=grad.real.dtype, device=grad.device)
    weights[0] = config.n_fft
    if config.n_fft % 2 == 0:
        weights[-1] = config.n_fft
    frames = torch.fft.irfft(grad * weights, n=config.n_fft)[:, : config.win_length]
    frames = frames * _window(config, frames.dtype, frames.device)
    if _emphasizes_frames(config):
        following = torch.nn.functional.pad(frames[:, 1:], (0, 1))
        following[:, 0] += frames[:, 0]
        frames = frames - config.preemphasis * following
    if config.remove_dc_offset:
        frames = frames - frames.mean(dim=1, keepdim=True)
    return frames


def _mel_energies(spectrum: Tensor, config: MelConfig) -> tuple[Tensor, Tensor]:
    """The power or magnitude spectrum, and its `[C, n_mels]` filterbank energies."""
    energy = spectrum.real.square() + spectrum.imag.square()
    if config.power_guard:
        energy = energy + config.power_guard
    if config.power == 1.0:
        energy = energy.sqrt()
    return energy, energy @ _mel_filters(config, energy.dtype, energy.device).t()


def _logarithm(mel: Tensor, config: MelConfig) -> Tensor:
    value = mel.clamp_min(config.log_floor) + config.log_guard
    if config.log != "none":
        value = value.log() * config.log_scale
    return (value - config.mean) / config.std if config.is_local else value


def _logarithm_backward(grad: Tensor, mel: Tensor, config: MelConfig) -> Tensor:
    if config.is_local:
        grad = grad / config.std
    if config.log != "none":
        grad = grad * (config.log_scale / (mel + config.log_guard))
    return torch.where(mel > config.log_floor, grad, 0.0)
