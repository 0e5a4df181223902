"""Recorded outputs of torchaudio, which has no build for every torch that this package supports.

Record them again, in an environment with torchaudio: `python -m tests.oracles.torchaudio`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FILE = Path(__file__).with_suffix(".npz")  # by torchaudio 2.11.0 on torch 2.13.0

# Of torchaudio.transforms.MelSpectrogram.
MEL_SPECTROGRAMS: list[dict[str, Any]] = [
    {},
    {"n_fft": 512, "win_length": 321, "hop_length": 100, "n_mels": 40},
    {"f_min": 80.0, "f_max": 7600.0, "n_mels": 80},
    {"pad": 37},
    {"pad": 37, "pad_mode": "constant"},
    {"power": 1.0, "n_mels": 20},
    {"normalized": True, "window_fn": torch.hamming_window},
    {"normalized": "window", "power": 1.0, "win_length": 300},
    {"normalized": "frame_length"},
    {"wkwargs": {"periodic": False}},
    {"window_fn": torch.hamming_window, "wkwargs": {"periodic": False}},
    {"window_fn": torch.ones},
    {"center": False},
    {"center": False, "pad_mode": "replicate", "win_length": 250},
    {"norm": "slaney", "mel_scale": "slaney", "n_mels": 64},
    {"sample_rate": 11_025, "n_mels": 50},
]


def noise(*shape: int) -> Tensor:
    """Float32 in [-1, 1]."""
    return torch.from_numpy(np.random.default_rng(0).uniform(-1.0, 1.0, shape)).float()


def sweep() -> np.ndarray:
    """A second of noise, silence and a chirp with an offset, float64."""
    time = np.arange(8001) / 16_000
    chirp = 0.3 * np.sin(2 * np.pi * (50 * time + 4000 * time**2)) + 0.05
    return np.concatenate([np.random.default_rng(1).uniform(-0.5, 0.5, 6000), np.zeros(2000), chirp])


def mel_spectrogram(index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The mel spectrogram of `noise(2, 703)` with `MEL_SPECTROGRAMS[index]`, and a state dict of its shapes."""
    with np.load(_FILE) as recorded:
        shapes = {name: recorded[f"{index} shape of {name}"] for name in ("spectrogram.window", "mel_scale.fb")}
        mel = torch.from_numpy(recorded[f"{index}"])
    return mel, {name: torch.zeros(*shape.tolist()) for name, shape in shapes.items()}


def decibels() -> np.ndarray:
    """`[frames, 128]`: MelSpectrogram() and AmplitudeToDB() of `sweep()`, computed in float64."""
    with np.load(_FILE) as recorded:
        return recorded["decibels"]


def _record() -> None:
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    values: dict[str, np.ndarray] = {}
    for index, arguments in enumerate(MEL_SPECTROGRAMS):
        transform = MelSpectrogram(**arguments)
        values[f"{index}"] = transform(noise(2, 703)).numpy()
        for name, table in transform.state_dict().items():
            values[f"{index} shape of {name}"] = np.array(table.shape)
    # Its float32 filters are up to 2e-4 off their own definition where a bin lies close to the edge of a triangle.
    torch.set_default_dtype(torch.float64)
    values["decibels"] = AmplitudeToDB()(MelSpectrogram()(torch.from_numpy(sweep()))).T.float().numpy()
    np.savez_compressed(_FILE, **values)  # type: ignore[arg-type]


if __name__ == "__main__":
    _record()
