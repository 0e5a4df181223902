"""What a log-mel spectrogram is: one frozen description of every step from samples to normalised frames."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

Window = Literal["hann_periodic", "hann_symmetric"]


@dataclass(frozen=True)
class MelConfig:
    """A log-mel convention. The defaults are SLAP's: Kaldi's filterbank with a Hann window, as AST uses it.

    Frames are cut without centring (Kaldi's `snip_edges`): frame `i` starts at sample `i * hop_length` and no frame
    reaches beyond the clip, but for a clip shorter than one window, which is zero-padded to a single frame so that no
    clip vanishes. A clip of no samples has no frames.

    Attributes:
        sample_rate: Hz.
        n_fft: FFT size in samples, at least `win_length`; frames are zero-padded to it on the right.
        win_length: window in samples.
        hop_length: samples from one frame to the next.
        window: `hann_symmetric` (Kaldi) or `hann_periodic` (librosa, torchaudio).
        remove_dc_offset: subtract each frame's mean first.
        preemphasis: coefficient in [0, 1]; the first sample of a frame is its own predecessor (Kaldi).
        power: 2 for the power spectrum, 1 for the magnitude.
        n_mels: filters.
        f_min: lower edge of the first filter in Hz.
        f_max: upper edge of the last filter in Hz; None is the Nyquist frequency.
        log_floor: mel values are clamped to this before the natural logarithm.
        mean: subtracted from the logarithm.
        std: the logarithm is divided by it after that.
    """

    sample_rate: int = 16_000  # paper
    n_fft: int = 512  # Kaldi: the next power of two
    win_length: int = 400  # paper: 25 ms
    hop_length: int = 160  # paper: 10 ms
    window: Window = "hann_symmetric"  # paper: Hann; AST: symmetric
    remove_dc_offset: bool = True  # Kaldi
    preemphasis: float = 0.97  # Kaldi
    power: float = 2.0  # Kaldi
    n_mels: int = 64  # paper
    f_min: float = 20.0  # Kaldi
    f_max: float | None = None  # Kaldi
    log_floor: float = 1.1920928955078125e-07  # Kaldi: float32's epsilon
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "win_length", "hop_length", "n_mels"):
            if getattr(self, name) < 1:
                raise ValueError(f"MelConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_fft < self.win_length:
            raise ValueError(f"MelConfig.n_fft is {self.n_fft}; it must be at least win_length ({self.win_length})")
        if self.window not in ("hann_periodic", "hann_symmetric"):
            raise ValueError(f"MelConfig.window is {self.window!r}; choose 'hann_periodic' or 'hann_symmetric'")
        if not 0.0 <= self.preemphasis <= 1.0:
            raise ValueError(f"MelConfig.preemphasis is {self.preemphasis}; it must lie in [0, 1]")
        if self.power not in (1.0, 2.0):
            raise ValueError(f"MelConfig.power is {self.power}; choose 1 (magnitude) or 2 (power)")
        nyquist = self.sample_rate / 2
        if not 0.0 <= self.f_min < (self.f_max or nyquist) <= nyquist:
            raise ValueError(
                f"MelConfig.f_min, f_max are {self.f_min}, {self.f_max}; 0 <= f_min < f_max <= {nyquist} must hold"
            )
        if not self.log_floor > 0.0:
            raise ValueError(f"MelConfig.log_floor is {self.log_floor}; it must be positive")
        if not self.std > 0.0:
            raise ValueError(f"MelConfig.std is {self.std}; it must be positive")
        # Made once, here: an op's schema takes a string, and a compiler cannot trace the making.
        object.__setattr__(self, "_serialized", json.dumps(asdict(self)))

    @property
    def serialized(self) -> str:
        """The fields as JSON: what passes a configuration through an op's schema."""
        serialized: str = self.__dict__["_serialized"]
        return serialized

    def num_frames(self, n_samples: int) -> int:
        """Frames of a clip of `n_samples`, exactly."""
        if n_samples <= 0:
            return 0
        return 1 + max(0, n_samples - self.win_length) // self.hop_length

    @property
    def normalized_floor(self) -> float:
        """What a silent mel bin becomes after the logarithm and the normalisation: the value to pad frames with."""
        return (math.log(self.log_floor) - self.mean) / self.std
