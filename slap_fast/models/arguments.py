"""Audio and text arguments of `SLAP`'s methods: every accepted form is converted, anything ambiguous is an error."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from numbers import Real
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

Audio = np.ndarray | Tensor | str | os.PathLike | bytes | BinaryIO | tuple[Any, Any] | Mapping[str, Any]
"""One clip, in any of the forms listed in `SLAP.encode_audio`."""

_FORMS = "a path, samples [S], a pair (samples, Hz), or a dict of array and sampling_rate"
_MAX_CHANNELS = 8  # of a clip given as [channels, samples] or [samples, channels]
_RATES = (500.0, 1e7)  # Hz
_MAX_RMS = 2.0  # full-scale audio has at most 1, unit-variance noise slightly more, integer samples thousands


@dataclass(frozen=True)
class NamedClip:
    """One clip with its name in error messages: `audio`, or `audio[3]`."""

    name: str
    audio: Audio


def split_clips(audio: Any) -> tuple[int | None, Iterator[NamedClip]]:
    """The number of clips, if known, and an iterator over them.

    Raises:
        ValueError: `audio` is neither a clip nor an ordered iterable of clips.
    """
    if _is_clip(audio):
        return 1, iter([NamedClip("audio", audio)])
    if hasattr(audio, "__array__"):
        array = _array(audio)
        if _is_numeric(array) or array.ndim != 1:
            raise ValueError(_ambiguous("audio", tuple(array.shape)))
    if not isinstance(audio, Iterable) or isinstance(audio, set | frozenset):
        raise ValueError(f"audio is a {type(audio).__name__}; pass one clip ({_FORMS}), or a list of clips")
    count = len(audio) if isinstance(audio, Sized) else None
    return count, (NamedClip(f"audio[{position}]", clip) for position, clip in enumerate(_iterate("audio", audio)))


def single_clip(audio: Any) -> Audio:
    """The clip of an argument that must hold exactly one.

    Raises:
        ValueError: there is none, or more than one.
    """
    clips = split_clips(audio)[1]
    clip = next(clips, None)
    if clip is None or next(clips, None) is not None:
        raise ValueError(f"audio holds {'no clip' if clip is None else 'several clips'}; pass one")
    return clip.audio


def waveform(clip: NamedClip, sample_rate: int, given_rate: float | None, device: torch.device) -> Tensor:
    """One clip as `[S]` float32 in [-1, 1] at `sample_rate` Hz on `device`, differentiable with respect to a tensor.

    Args:
        clip: see `Audio`.
        sample_rate: Hz, of the model.
        given_rate: Hz, of samples without their own rate; None: the model's is assumed.
        device: of the result.

    Raises:
        ValueError: it is not a clip, or its form is ambiguous; the message has its name.
        AudioError: a file cannot be read; the message has its name.
    """
    if given_rate is not None:
        given_rate = _checked_rate("sampling_rate", given_rate)
    samples, own_rate = _split_rate(clip.name, clip.audio)
    if _is_file(samples):
        return torch.from_numpy(np.concatenate(list(_read(clip.name, samples, sample_rate)))).to(device)
    if own_rate is not None and given_rate is not None and own_rate != given_rate:
        raise ValueError(
            f"{clip.name} has its own rate of {own_rate:g} Hz, but sampling_rate is {given_rate:g}; pass one of them"
        )
    values = _mono(clip.name, _as_tensor(clip.name, samples), is_one_clip=own_rate is not None)
    _check_values(clip.name, values)
    if own_rate is None and given_rate is None:
        warnings.warn(
            # The same text for every clip, so that Python's warning filter shows it once.
            f"audio samples without a sampling rate are assumed to be at {sample_rate} Hz; pass sampling_rate= in Hz, "
            "and they are resampled if needed",
            stacklevel=2,
        )
    rate = own_rate or given_rate or sample_rate
    if rate != sample_rate:
        values = _resample(clip.name, values, rate, sample_rate)
    return values.to(device).contiguous()


def waveform_blocks(
    clip: NamedClip, sample_rate: int, given_rate: float | None, device: torch.device
) -> Iterator[Tensor]:
    """The waveform of `waveform` in non-empty blocks: files are decoded as a stream, samples are one block.

    Args and errors as in `waveform`.
    """
    samples, _ = (None, None) if _is_decoder(clip.audio) else _split_rate(clip.name, clip.audio)
    if samples is None or not _is_file(samples):
        yield waveform(clip, sample_rate, given_rate, device)
        return
    if given_rate is not None:
        _checked_rate("sampling_rate", given_rate)
    for block in _read(clip.name, samples, sample_rate):
        yield torch.from_numpy(block).to(device)


def _iterate(name: str, values: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(values)
    except TypeError as error:  # such as an array without dimensions
        raise ValueError(f"{name} is a {type(values).__name__} that cannot be iterated ({error})") from error


def _is_clip(audio: Any) -> bool:
    if _is_file(audio) or _is_pair(audio) or isinstance(audio, Mapping) or _is_decoder(audio):
        return True
    if not hasattr(audio, "__array__") or not _is_numeric(audio := _array(audio)):
        return False
    return audio.ndim < 2 or (audio.ndim == 2 and 1 in audio.shape)


def _is_file(audio: Any) -> bool:
    return isinstance(audio, str | os.PathLike | bytes | bytearray) or (
        hasattr(audio, "read") and hasattr(audio, "seek")
    )


def _is_decoder(audio: Any) -> bool:
    """torchcodec's AudioDecoder, which the `datasets` library returns for an audio column."""
    return hasattr(audio, "get_all_samples")


def _is_pair(audio: Any) -> bool:
    return (
        isinstance(audio, tuple | list)
        and len(audio) == 2
        and sum(map(_is_number, audio)) == 1
        and not any(map(_is_file, audio))
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        value = value.item() if value.ndim == 0 else None
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_numeric(array: Tensor | np.ndarray) -> bool:
    return isinstance(array, Tensor) or array.dtype.kind in "biufc"


def _array(audio: Any) -> Tensor | np.ndarray:
    return audio if isinstance(audio, Tensor) else np.asarray(audio)


def _split_rate(name: str, audio: Any) -> tuple[Any, float | None]:
    """The samples or the file, and the sampling rate if the clip has its own."""
    if _is_decoder(audio):
        decoded = audio.get_all_samples()
        return decoded.data, _checked_rate(f"{name}.sample_rate", decoded.sample_rate)
    if _is_pair(audio):
        first, second = audio
        samples, rate = (second, first) if _is_number(first) else (first, second)
        return samples, _checked_rate(f"the rate of {name}", rate)
    if not isinstance(audio, Mapping):
        return audio, None
    for key in ("array", "raw"):
        if audio.get(key) is not None:
            if audio.get("sampling_rate") is None:
                raise ValueError(f"{name} is a dict with {key} but without sampling_rate (Hz); add it")
            if _is_file(audio[key]):
                raise ValueError(
                    f"{name}[{key!r}] is a {type(audio[key]).__name__}; pass samples, or use 'bytes' or 'path'"
                )
            return audio[key], _checked_rate(f"{name}['sampling_rate']", audio["sampling_rate"])
    for key in ("bytes", "path"):
        if audio.get(key) is not None:
            if not _is_file(audio[key]):
                raise ValueError(f"{name}[{key!r}] is a {type(audio[key]).__name__}; pass samples as 'array'")
            return audio[key], None
    keys = ", ".join(repr(key) for key in list(audio)[:8]) or "nothing"
    raise ValueError(f"{name} is a dict of {keys}; pass one of array and sampling_rate, of bytes, or of path")


def _checked_rate(name: str, value: Any) -> float:
    if not _is_number(value):
        raise ValueError(f"{name} is a {type(value).__name__}; pass a number of Hz")
    low, high = _RATES
    if not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:20]} Hz, which is no rate of audio; pass Hz, such as 44100")
    return float(value)


def _read(name: str, file: Any, sample_rate: int) -> Iterator[np.ndarray]:
    from slap_fast.audio.errors import AudioError
    from slap_fast.audio.waveform import audio_blocks  # file decoders are not needed for waveforms

    if isinstance(file, io.TextIOBase):
        raise ValueError(f"{name} is a file that is open as text; open it in mode 'rb', or pass its path")
    path = os.fsdecode(file) if isinstance(file, str | os.PathLike) else ""
    if isinstance(file, str) and not file:
        raise ValueError(f"{name} is an empty path")
    try:
        yield from audio_blocks(bytes(file) if isinstance(file, bytearray) else file, sample_rate)
    except AudioError as error:
        where = name if path in error.detail else f"{name}: {path}"
        raise AudioError(error.reason, f"{where}: {error.detail}") from error


def _as_tensor(name: str, samples: Any) -> Tensor:
    """Samples of any shape as float32."""
    is_tensor = isinstance(samples, Tensor)
    if is_tensor:
        if samples.dtype == torch.int16:
            return samples.float() / 32768.0
        kind, is_float = str(samples.dtype), samples.is_floating_point()
    else:
        given = type(samples).__name__
        try:
            samples = np.asarray(samples)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{name} is a {given}, but no array of samples ({reason}); pass {_FORMS}") from error
        kind, is_float = str(samples.dtype), samples.dtype.kind == "f"
        if samples.dtype.kind not in "biufc" or samples.ndim == 0:
            raise ValueError(f"{name} is a {given}; pass {_FORMS}")
        if is_float:
            with np.errstate(over="ignore"):
                # Copied to native byte order and contiguous strides, which torch requires.
                samples = torch.from_numpy(np.array(samples, np.float32, order="C"))
        elif samples.dtype.kind == "i" and samples.dtype.itemsize == 2:
            return torch.from_numpy(np.array(samples, np.float32, order="C")) / 32768.0
    if not is_float:
        raise ValueError(
            f"{name} is {kind}; pass float samples in [-1, 1] (integers divided by their full scale), or int16"
        )
    # Always a copy: an iterator may use its buffer again for the next clip, while this one waits to be packed with it.
    return samples.to(torch.float32, copy=is_tensor)


def _mono(name: str, samples: Tensor, *, is_one_clip: bool) -> Tensor:
    """`[S]` from `[S]`, `[1, S]` or `[S, 1]`; if `is_one_clip`, also from `[channels, S]` or `[S, channels]`."""
    shape = tuple(samples.shape)
    if samples.dim() == 0 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; a clip has at least one sample")
    if samples.dim() == 1:
        return samples
    if samples.dim() == 2:
        if 1 in shape:
            return samples.reshape(-1)
        if is_one_clip and min(shape) <= _MAX_CHANNELS < max(shape):
            return samples.mean(dim=shape.index(min(shape)))
    raise ValueError(_ambiguous(name, shape))


def _ambiguous(name: str, shape: tuple[int, ...]) -> str:
    return (
        f"{name} has shape {shape}, which may be channels or clips; pass a mono clip as [S], one of several channels "
        "with its rate, as (samples, Hz), and clips as a list"
    )


def _check_values(name: str, samples: Tensor) -> None:
    values = samples.detach()
    # One pass over the samples: a NaN or infinity among them shows in their norm.
    level = float(torch.linalg.vector_norm(values)) / len(values) ** 0.5
    if not math.isfinite(level) and not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds NaN or infinite samples")
    if level > _MAX_RMS:
        raise ValueError(
            f"{name} has a root mean square of {level:.4g}, where full scale is 1: these are samples at the scale of "
            "integers; divide them (by 32768 for 16 bits), or pass them as int16"
        )


def _resample(name: str, samples: Tensor, rate: float, sample_rate: int) -> Tensor:
    import soxr

    if samples.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} is at {rate:g} Hz and requires a gradient, but resampling has none; resample it to "
            f"{sample_rate} Hz with a differentiable resampler, such as torchaudio.functional.resample"
        )
    resampled = soxr.resample(samples.detach().cpu().numpy(), rate, sample_rate, quality="HQ")
    if not len(resampled):
        raise ValueError(f"{name} has {len(samples)} samples at {rate:g} Hz, too few for one at {sample_rate} Hz")
    return torch.from_numpy(resampled)
