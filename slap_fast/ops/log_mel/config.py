"""`MelConfig`: a frozen description of every step from samples to normalized log-mel frames."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import torch

from slap_fast.ops.log_mel.presets import PRESETS

Window = Literal["hann_periodic", "hann_symmetric", "hamming_periodic", "hamming_symmetric", "povey", "rectangular"]
FrameSpan = Literal["win_length", "n_fft"]
Padding = Literal["none", "zeros", "reflect", "kaldi"]
PreemphasisScope = Literal["frame", "clip"]
MelScale = Literal["kaldi", "htk", "slaney"]
MelNorm = Literal["none", "slaney"]
Log = Literal["natural", "log10", "db", "none"]

# Kernels compute the logarithm of normal float32 numbers only.
_SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class MelConfig:
    """A log-mel convention. The defaults are SLAP's: Kaldi's filterbank with a Hann window, as AST uses it.

    Frame `i` is computed from the `win_length` samples x that start at `first_sample + i * hop_length` of its clip:

        x = x * input_scale
        x = x - mean(x)                                         if remove_dc_offset
        x = x - preemphasis * previous(x)
        X = rfft(x * window, n_fft)                             zero-padded from win_length to n_fft
        P = |X|^2 + power_guard;  P = sqrt(P) if power == 1
        y = log(max(filters @ P, log_floor) + log_guard)        in the unit of `log`
        y = max(y, max(y over the clip) - dynamic_range)        if dynamic_range
        y = (y - mean over the clip) / (std over the clip + 1e-5), for each mel bin   if normalize_per_clip
        y = (y - mean) / std

    A clip without samples has no frames. Without padding, a clip shorter than one frame is zero-padded to one frame, so
    that no clip vanishes.

    Attributes:
        sample_rate: Hz.
        n_fft: FFT size in samples, at least `win_length`; any integer, fastest with small prime factors.
        win_length: length of the window in samples.
        hop_length: samples from the start of one frame to the next.
        window: `*_symmetric` (Kaldi, NeMo) or `*_periodic` (librosa, torchaudio); `povey` is the symmetric Hann window
            to the power of 0.85 (Kaldi).
        frame_span: number of samples that a frame spans: `win_length` (Kaldi), or `n_fft` with the window in the middle
            (torch.stft, librosa). It determines where frames start and how many there are.
        padding: `none`: no frame reaches beyond the clip (Kaldi's `snip_edges`). `zeros` or `reflect`: `pad_length`
            samples on both sides; the reflection repeats on clips shorter than the padding (as in NumPy). `kaldi`:
            Kaldi's `snip_edges=false`: one frame per hop, centered in it, samples mirrored with the edge repeated.
        pad_length: samples; None is half the span of a frame (centered frames).
        drop_last_frame: leave out the last frame of each clip (Whisper, NeMo).
        input_scale: factor on the samples: 32768 for conventions in the range of 16-bit integers.
        remove_dc_offset: subtract the mean of each frame first.
        preemphasis: coefficient in [0, 1].
        preemphasis_scope: `frame`: the first sample of a frame is its own predecessor (Kaldi); `clip`: the filter runs
            over the clip before padding and leaves the first sample unchanged (NeMo).
        power: 2 for the power spectrum, 1 for the magnitude.
        power_guard: added to the power spectrum; with `power=1` it keeps the slope of the root finite (HiFi-GAN).
        n_mels: number of filters.
        f_min: lower edge of the first filter in Hz.
        f_max: upper edge of the last filter in Hz; None is the Nyquist frequency.
        mel_scale: `kaldi`: 1127 ln(1 + f / 700), triangles linear in mel; `htk`: the same scale, triangles linear in
            Hz; `slaney`: linear below 1 kHz and logarithmic above, triangles linear in Hz.
        mel_norm: `slaney` divides each filter by half its width in Hz.
        log: `natural`, `log10`, `db` (10 log10, or 20 log10 with `power=1`), or `none`.
        log_floor: mel values are clamped to this first.
        log_guard: added after clamping.
        dynamic_range: in units of the logarithm: librosa's `top_db`, Whisper's 8; None: unlimited.
        normalize_per_clip: NeMo's `per_feature`, with the unbiased deviation, 0 for a single frame.
        mean: subtracted at the end.
        std: divisor after `mean` is subtracted.
    """

    sample_rate: int = 16_000  # paper
    n_fft: int = 512  # Kaldi: the next power of two
    win_length: int = 400  # paper: 25 ms
    hop_length: int = 160  # paper: 10 ms
    window: Window = "hann_symmetric"  # paper: Hann; AST: symmetric
    frame_span: FrameSpan = "win_length"  # Kaldi
    padding: Padding = "none"  # Kaldi
    pad_length: int | None = None
    drop_last_frame: bool = False
    input_scale: float = 1.0
    remove_dc_offset: bool = True  # Kaldi
    preemphasis: float = 0.97  # Kaldi
    preemphasis_scope: PreemphasisScope = "frame"  # Kaldi
    power: float = 2.0  # Kaldi
    power_guard: float = 0.0
    n_mels: int = 64  # paper
    f_min: float = 20.0  # Kaldi
    f_max: float | None = None  # Kaldi
    mel_scale: MelScale = "kaldi"
    mel_norm: MelNorm = "none"  # Kaldi
    log: Log = "natural"  # Kaldi
    log_floor: float = 1.1920928955078125e-07  # Kaldi: float32's epsilon
    log_guard: float = 0.0
    dynamic_range: float | None = None
    normalize_per_clip: bool = False
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MelConfig:
        """The convention of a library by name, with `changes` to its fields. See `slap_fast.ops.log_mel.presets`.

        Raises:
            ValueError: an unknown name, or an invalid value.
            TypeError: a change to a field that does not exist.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no mel preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("sample_rate", "n_fft", "win_length", "hop_length", "n_mels"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"MelConfig.{name} is {getattr(self, name)!r}; it must be an integer of at least 1")
        if self.pad_length is not None and type(self.pad_length) is not int:
            raise ValueError(f"MelConfig.pad_length is {self.pad_length!r}; it must be an integer or None")
        for name in ("pad_length", "power_guard", "log_floor", "log_guard", "dynamic_range"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"MelConfig.{name} is {value}; it must be finite and at least 0")
        for name in ("std", "input_scale"):
            if not (getattr(self, name) > 0.0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"MelConfig.{name} is {getattr(self, name)}; it must be positive and finite")
        if not math.isfinite(self.mean):
            raise ValueError(f"MelConfig.mean is {self.mean}; it must be finite")
        if self.n_fft < self.win_length:
            raise ValueError(f"MelConfig.n_fft is {self.n_fft}; it must be at least win_length ({self.win_length})")
        if self.pad_length is not None and self.padding not in ("zeros", "reflect"):
            raise ValueError(
                f"MelConfig.pad_length is {self.pad_length} with padding {self.padding!r}, which takes none; "
                "set padding to 'zeros' or 'reflect', or leave pad_length out"
            )
        if self.padding == "kaldi" and self.frame_span != "win_length":
            raise ValueError("MelConfig.padding 'kaldi' centers windows; it needs frame_span='win_length'")
        if not 0.0 <= self.preemphasis <= 1.0:
            raise ValueError(f"MelConfig.preemphasis is {self.preemphasis}; it must lie in [0, 1]")
        if self.power not in (1.0, 2.0):
            raise ValueError(f"MelConfig.power is {self.power}; choose 1 (magnitude) or 2 (power)")
        nyquist = self.sample_rate / 2
        f_max = nyquist if self.f_max is None else self.f_max
        if not 0.0 <= self.f_min < f_max <= nyquist:
            raise ValueError(
                f"MelConfig.f_min, f_max are {self.f_min}, {self.f_max}; 0 <= f_min < f_max <= {nyquist} must hold"
            )
        if self.log != "none" and self.log_floor + self.log_guard < _SMALLEST_NORMAL:
            raise ValueError(
                f"MelConfig.log_floor + log_guard is {self.log_floor + self.log_guard}; the logarithm of silence needs "
                f"at least {_SMALLEST_NORMAL:.3g}"
            )
        # Serialized once, here: the schema of an op takes a string, and the compiler cannot trace json.dumps.
        object.__setattr__(self, "_serialized", json.dumps(asdict(self)))

    def _check_choices(self) -> None:
        hints = _hints()
        for field in fields(self):
            choices = get_args(hints[field.name])
            value = getattr(self, field.name)
            if isinstance(field.default, str) and value not in choices:
                raise ValueError(f"MelConfig.{field.name} is {value!r}; choose one of {', '.join(map(repr, choices))}")

    @property
    def serialized(self) -> str:
        """The fields as JSON, for schemas of registered ops."""
        serialized: str = self.__dict__["_serialized"]
        return serialized

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def parse(serialized: str) -> MelConfig:
        """The inverse of `serialized`."""
        return MelConfig(**json.loads(serialized))

    @property
    def span(self) -> int:
        """Samples of the padded clip that a frame spans: `win_length` or `n_fft`, by `frame_span`."""
        return self.n_fft if self.frame_span == "n_fft" else self.win_length

    @property
    def first_sample(self) -> int:
        """Position in the clip at which the window of frame 0 starts; negative: in the padding."""
        if self.padding == "kaldi":
            return self.hop_length // 2 - self.win_length // 2
        return (self.span - self.win_length) // 2 - self.pad

    @property
    def pad(self) -> int:
        """Samples of zeros or reflection on each side of a clip."""
        if self.padding not in ("zeros", "reflect"):
            return 0
        return self.span // 2 if self.pad_length is None else self.pad_length

    def num_frames(self, n_samples: int) -> int:
        """Exact number of frames of a clip of `n_samples`."""
        if n_samples <= 0:
            return 0
        if self.padding == "kaldi":
            frames = (n_samples + self.hop_length // 2) // self.hop_length
        else:
            # Not Python's max: under torch.export its comparison would restrict the range of the length.
            frames = 1 + torch.sym_max(0, n_samples + 2 * self.pad - self.span) // self.hop_length
        return torch.sym_max(0, frames - 1) if self.drop_last_frame else frames

    @property
    def is_local(self) -> bool:
        """Whether a frame depends only on its own samples, not on the rest of the clip."""
        return self.dynamic_range is None and not self.normalize_per_clip

    @property
    def normalized_floor(self) -> float:
        """Value of a silent mel bin after logarithm and normalization, with which frames are padded.

        With `normalize_per_clip` it is the mean of a clip, as NeMo pads. `power_guard` is ignored.
        """
        if self.normalize_per_clip:
            return -self.mean / self.std
        silence = self.log_floor + self.log_guard
        return ((math.log(silence) * self.log_scale if self.log != "none" else silence) - self.mean) / self.std

    @property
    def log_scale(self) -> float:
        """Factor from the natural logarithm to the unit of `log`; 0 for `none`."""
        decibels = (10.0 if self.power == 2.0 else 20.0) / math.log(10.0)
        return {"natural": 1.0, "log10": 1.0 / math.log(10.0), "db": decibels, "none": 0.0}[self.log]


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(MelConfig)
