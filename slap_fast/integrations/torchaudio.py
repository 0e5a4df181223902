"""torchaudio's `MelSpectrogram` on `log_mel`: the same arguments and values, in one fused pass.

    mel = MelSpectrogram(sample_rate=16_000, n_fft=512, n_mels=80, log="db")    # an nn.Module, as in torchaudio
    features = mel(waveform)                                                    # [..., time] -> [..., 80, frames]

torchaudio itself is not needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import Log, MelConfig, Window
from slap_fast.ops.log_mel.tables import window

_WINDOWS: dict[Any, tuple[Window, Window]] = {
    # The name with periodic=True, and with periodic=False.
    torch.hann_window: ("hann_periodic", "hann_symmetric"),
    torch.hamming_window: ("hamming_periodic", "hamming_symmetric"),
    torch.ones: ("rectangular", "rectangular"),
}
_PAD_MODES = {"reflect": "reflect", "constant": "zeros"}


class MelSpectrogram(nn.Module):
    """Mel spectrogram of `[..., time]` waveforms: `torchaudio.transforms.MelSpectrogram`, fused.

    Differentiable, without parameters or buffers. Checkpoints of torchaudio load: their tables, window and filterbank,
    are ignored, as they follow from the arguments.

    Clips that `torch.stft` rejects have frames here: the reflection repeats on clips that are not longer than it, and
    with `center=False` a clip shorter than `n_fft` is zero-padded to one frame.

    Args:
        sample_rate: Hz.
        n_fft: FFT size in samples, even.
        win_length: length of the window in samples; None is `n_fft`.
        hop_length: samples from the start of one frame to the next; None is `win_length // 2`.
        f_min: lower edge of the first filter in Hz, at least 0.
        f_max: upper edge of the last filter in Hz, at most `sample_rate // 2`, the default.
        pad: zeros added on both sides of the waveform first.
        n_mels: number of filters.
        window_fn: `torch.hann_window`, `torch.hamming_window` or `torch.ones`.
        power: 2 for the power spectrum, 1 for the magnitude.
        normalized: True or "window" divides the spectrum by the root of the window's sum of squares, "frame_length" by
            the root of `n_fft`.
        wkwargs: keyword arguments of `window_fn`: only `periodic`.
        center: center frame t at sample `t * hop_length`, by padding with `n_fft // 2` samples on both sides.
        pad_mode: of that padding: "reflect" or "constant" (zeros).
        onesided: ignored, as in torchaudio.
        norm: "slaney" divides each filter by half its width in Hz.
        mel_scale: "htk" or "slaney".
        log: not in torchaudio: a logarithm in the same pass: "natural", "log10", or "db", which is `AmplitudeToDB`
            without `top_db`, of stype "power" for `power=2` and "magnitude" for `power=1`.
        log_floor: mel values are clamped to this before a logarithm.

    Raises:
        ValueError: an argument has a value that is not listed above.
    """

    def __init__(
        self,
        sample_rate: int = 16_000,
        n_fft: int = 400,
        win_length: int | None = None,
        hop_length: int | None = None,
        f_min: float = 0.0,
        f_max: float | None = None,
        pad: int = 0,
        n_mels: int = 128,
        window_fn: Callable[..., Tensor] = torch.hann_window,
        power: float = 2.0,
        normalized: bool | str = False,
        wkwargs: dict[str, Any] | None = None,
        center: bool = True,
        pad_mode: str = "reflect",
        onesided: bool | None = None,
        norm: str | None = None,
        mel_scale: str = "htk",
        *,
        log: Log = "none",
        log_floor: float = 1e-10,
    ) -> None:
        super().__init__()
        win_length = n_fft if win_length is None else win_length
        hop_length = win_length // 2 if hop_length is None else hop_length
        if n_fft % 2:
            # torchaudio places the last bin at the Nyquist frequency, where an odd FFT has none.
            raise ValueError(f"n_fft is {n_fft}; choose an even number")
        if pad < 0:
            raise ValueError(f"pad is {pad}; it must be at least 0")
        if power not in (1.0, 2.0):
            raise ValueError(f"power is {power}; choose 1 (magnitude) or 2 (power)")
        if center and pad_mode not in _PAD_MODES:
            raise ValueError(f"pad_mode is {pad_mode!r}; choose one of {', '.join(map(repr, _PAD_MODES))}")
        if norm not in (None, "slaney"):
            raise ValueError(f"norm is {norm!r}; choose None or 'slaney'")
        if mel_scale not in ("htk", "slaney"):
            raise ValueError(f"mel_scale is {mel_scale!r}; choose 'htk' or 'slaney'")
        if normalized not in (False, True, "window", "frame_length"):
            raise ValueError(f"normalized is {normalized!r}; choose False, True, 'window' or 'frame_length'")
        config = MelConfig(
            # torchaudio rounds the Nyquist frequency down to an integer and spreads the bins up to it.
            sample_rate=sample_rate // 2 * 2,
            n_fft=n_fft,
            win_length=win_length,
            hop_length=hop_length,
            window=_window_name(window_fn, wkwargs or {}),
            frame_span="n_fft",
            padding=_PAD_MODES[pad_mode] if center else "none",  # type: ignore[arg-type]
            remove_dc_offset=False,
            preemphasis=0.0,
            power=power,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            mel_scale=mel_scale,  # type: ignore[arg-type]
            mel_norm=norm or "none",  # type: ignore[arg-type]
            log=log,
            log_floor=0.0 if log == "none" else log_floor,
        )
        self.config = _normalized(config, normalized)
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.n_mels = n_mels
        self.pad = pad
        self.register_load_state_dict_pre_hook(_drop_torchaudio_tables)

    def forward(self, waveform: Tensor) -> Tensor:
        """Mel spectrogram of each row.

        Args:
            waveform: `[..., time]` float32 or float64 samples.

        Returns:
            `[..., n_mels, frames]` of the waveform's dtype, on its device.

        Raises:
            ValueError: no time dimension, or another dtype.
        """
        if waveform.dim() == 0:
            raise ValueError("waveform has no dimension; pass [..., time]")
        if self.pad:
            waveform = nn.functional.pad(waveform, (self.pad, self.pad))
        return log_mel(waveform, None, self.config).transpose(-1, -2)

    def extra_repr(self) -> str:
        return f"sample_rate={self.sample_rate}, n_fft={self.n_fft}, hop_length={self.hop_length}, n_mels={self.n_mels}"


def _window_name(window_fn: Callable[..., Tensor], arguments: dict[str, Any]) -> Window:
    if window_fn not in _WINDOWS:
        raise ValueError(f"window_fn is {window_fn}; choose torch.hann_window, torch.hamming_window or torch.ones")
    known = [] if window_fn is torch.ones else ["periodic"]
    for name in arguments:
        if name not in known:
            raise ValueError(f"wkwargs has {name!r}; {window_fn.__name__} takes {' '.join(known) or 'nothing'} here")
    periodic, symmetric = _WINDOWS[window_fn]
    return periodic if arguments.get("periodic", True) else symmetric


def _normalized(config: MelConfig, normalized: bool | str) -> MelConfig:
    """`config` with the scale of the spectrum applied to the samples: the spectrum is linear in them."""
    if not normalized:
        return config
    energy = config.n_fft if normalized == "frame_length" else float((window(config) ** 2).sum())
    return dataclasses.replace(config, input_scale=1.0 / math.sqrt(energy))


def _drop_torchaudio_tables(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in ("spectrogram.window", "mel_scale.fb"):
        state_dict.pop(prefix + name, None)
