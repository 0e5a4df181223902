"""Feature extractors of Hugging Face transformers for Whisper, AST and CLAP, on `log_mel`.

    extractor = WhisperFeatureExtractor.from_pretrained("openai/whisper-small")
    features = extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features    # list of [S] tensors

Configuration, arguments, output keys and values equal those of the classes of the same name in transformers, whose
`from_pretrained` and `save_pretrained` they inherit. Differences:

- audio may also be a tensor or a list of tensors, on any device. Features of tensors are tensors on the device of the
  audio, differentiable with respect to it; transformers returns arrays unless `return_tensors` is set;
- a batch is one call of `log_mel`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import BatchFeature
from transformers.utils import PaddingStrategy, TensorType, logging

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.packed import PackedLayout

_logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Clips:
    """The caller's audio as one float32 `[S]` tensor per clip, and whether features are returned as tensors."""

    samples: list[Tensor]
    as_tensors: bool

    @classmethod
    def of(cls, raw_speech: Any) -> _Clips:
        if isinstance(raw_speech, Tensor | np.ndarray):
            if raw_speech.ndim not in (1, 2):
                raise ValueError(
                    f"raw_speech has shape {tuple(raw_speech.shape)}; pass mono audio, [S] for one clip or [B, S]"
                )
            batch = list(raw_speech) if raw_speech.ndim == 2 else [raw_speech]
        elif isinstance(raw_speech, Sequence) and len(raw_speech):
            first = raw_speech[0]
            is_batched = isinstance(first, Tensor | np.ndarray | list | tuple) and getattr(first, "ndim", 1) > 0
            batch = list(raw_speech) if is_batched else [raw_speech]
        else:
            raise ValueError(f"raw_speech is {raw_speech!r:.100}; pass a tensor, an array, numbers, or a list of those")
        if not batch:
            raise ValueError("raw_speech is a batch of no clips; pass at least one")
        samples: list[Tensor] = []
        for index, clip in enumerate(batch):
            if not isinstance(clip, Tensor):
                clip = torch.from_numpy(np.require(clip, np.float32, ["C", "W"]))
            if clip.dim() != 1:
                raise ValueError(f"clip {index} has shape {tuple(clip.shape)}; pass mono audio, [S]")
            if clip.device != (samples[0].device if samples else clip.device):
                raise ValueError(f"clip {index} is on {clip.device}, clip 0 on {samples[0].device}; use one device")
            samples.append(clip.to(torch.float32))
        return cls(samples, isinstance(batch[0], Tensor))

    def output(self, features: list[Tensor], return_tensors: str | TensorType | None) -> Any:
        """One feature tensor per clip, in the form of `return_tensors`."""
        if return_tensors is None:
            return features if self.as_tensors else [feature.numpy() for feature in features]
        return _stack(torch.stack(features), return_tensors)


def _stack(batch: Tensor, return_tensors: str | TensorType) -> Any:
    return batch if TensorType(return_tensors) == TensorType.PYTORCH else batch.detach().cpu().numpy()


def _check_rate(extractor: Any, sampling_rate: int | None) -> None:
    if sampling_rate is None:
        _logger.warning(f"pass sampling_rate to {type(extractor).__name__}, so that audio of another rate is detected")
    elif sampling_rate != extractor.sampling_rate:
        raise ValueError(
            f"sampling_rate is {sampling_rate}, but {type(extractor).__name__} takes {extractor.sampling_rate}; "
            "resample the audio"
        )


def _frames(clips: list[Tensor], config: MelConfig) -> list[Tensor]:
    """`[F_i, n_mels]` frames of each clip, by one call of `log_mel`."""
    lengths = [clip.shape[0] for clip in clips]
    layout = PackedLayout.from_lengths(lengths, device=clips[0].device, dtype=torch.int64)
    counts = [config.num_frames(length) for length in lengths]
    frames = log_mel(torch.cat(clips), layout.cu_seqlens, config, total_frames=sum(counts))
    return list(frames.split(counts))


# Cached: a new config is built only if an attribute of the extractor has changed.
_preset = functools.lru_cache(maxsize=32)(MelConfig.preset)


class WhisperFeatureExtractor(transformers.WhisperFeatureExtractor):
    """`transformers.WhisperFeatureExtractor`, fused. See `__call__` for the additional inputs."""

    @property
    def mel_config(self) -> MelConfig:
        """The convention of the extractor's attributes."""
        return _preset(
            "whisper",
            sample_rate=self.sampling_rate,
            n_fft=self.n_fft,
            win_length=self.n_fft,
            hop_length=self.hop_length,
            n_mels=self.feature_size,
        )

    def __call__(
        self,
        raw_speech: Any,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_attention_mask: bool | None = None,
        padding: Any = "max_length",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Whisper's log-mel features.

        Args:
            raw_speech: one clip, `[S]` samples in [-1, 1], or a batch, `[B, S]` or a list of clips; tensors, arrays
                or lists of numbers.
            truncation: cut clips at `max_length`.
            pad_to_multiple_of: `max_length`, or the longest clip, is rounded up to this.
            return_tensors: "pt" or "np"; None gives tensors for tensors and arrays for anything else.
            return_attention_mask: also return a mask of the frames that are audio.
            padding: "max_length", "longest" (or True), or "do_not_pad" (or False).
            max_length: samples; None is 30 s, the input length of Whisper.
            sampling_rate: of `raw_speech`; checked if given.
            do_normalize: scale each clip to mean 0 and variance 1 first.
            device: for the computation; None is that of the audio, to which the features return in any case.

        Returns:
            `input_features` `[B, n_mels, frames]` float32 and, if asked for, `attention_mask` `[B, frames]` int32.

        Raises:
            ValueError: another rate, not mono, or clips that still differ in length after padding.
        """
        _check_rate(self, sampling_rate)
        clips = _Clips.of(raw_speech)
        home = clips.samples[0].device
        limit = _round_up(max_length or self.n_samples, pad_to_multiple_of)
        samples = [clip[:limit] if truncation else clip for clip in clips.samples]
        lengths = [clip.shape[0] for clip in samples]
        length = _padded_length(lengths, padding, limit, pad_to_multiple_of)
        if device is not None:
            samples = [clip.to(device) for clip in samples]
        if do_normalize:
            samples = [(clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-7) for clip in samples]
        features = self._features(samples, length).to(home)
        if return_tensors is None:
            return_tensors = "pt" if clips.as_tensors else "np"
        output = {"input_features": _stack(features, return_tensors)}
        # Exactly as in transformers, where False has the same effect as None.
        wants_mask = return_attention_mask or do_normalize
        if self.return_attention_mask if wants_mask is None else wants_mask:
            mask = self._mask(lengths, length)
            if return_attention_mask:
                # Only if passed to the call: otherwise transformers returns the mask of the samples.
                mask = mask[:, :: self.hop_length][:, : features.shape[2]]
            output["attention_mask"] = _stack(mask.to(home), return_tensors)
        return BatchFeature(output)

    def _features(self, clips: list[Tensor], length: int) -> Tensor:
        """`[B, n_mels, F]` for clips padded to `length` samples."""
        config = self.mel_config
        lengths = [length] * len(clips)
        if self.padding_value == 0.0 and self.padding_side == "right" and self.dither == 0.0:
            # All frames that contain only padding are equal: compute one of them.
            margin = 2 * (self.n_fft + self.hop_length)
            lengths = [min(length, _round_up(clip.shape[0] + margin, self.hop_length)) for clip in clips]
        padded = [self._padded(clip, length) for clip, length in zip(clips, lengths, strict=True)]
        features = clips[0].new_empty(len(clips), config.n_mels, config.num_frames(length))
        for index, frames in enumerate(_frames(padded, config)):
            count = frames.shape[0]
            features[index, :, :count] = frames.t()
            if count < features.shape[2]:
                features[index, :, count:] = frames[-1][:, None]
        return features

    def _padded(self, clip: Tensor, length: int) -> Tensor:
        missing = length - clip.shape[0]
        sides = (missing, 0) if self.padding_side == "left" else (0, missing)
        padded = torch.nn.functional.pad(clip, sides, value=self.padding_value)
        return padded if self.dither == 0.0 else padded + self.dither * torch.randn_like(padded)

    def _mask(self, lengths: list[int], length: int) -> Tensor:
        """`[B, S]` int32: 1 where a sample is audio."""
        position = torch.arange(length)
        if self.padding_side == "left":
            position = position.flip(0)
        return (position < torch.tensor(lengths)[:, None]).to(torch.int32)


def _round_up(length: int, multiple: int | None) -> int:
    return length if multiple is None else -(-length // multiple) * multiple


def _padded_length(lengths: list[int], padding: bool | str | PaddingStrategy, limit: int, multiple: int | None) -> int:
    """Number of samples to which clips of `lengths` are padded.

    Raises:
        ValueError: an unknown `padding`, or one that leaves the clips of different lengths.
    """
    if isinstance(padding, bool):
        padding = PaddingStrategy.LONGEST if padding else PaddingStrategy.DO_NOT_PAD
    padding = PaddingStrategy(padding)
    longest = max(lengths)
    if padding == PaddingStrategy.LONGEST:
        return _round_up(longest, multiple)
    shortest = limit if padding == PaddingStrategy.MAX_LENGTH else min(lengths)
    if shortest < longest and min(lengths) < longest:
        raise ValueError(
            f"the clips have {min(lengths)} to {longest} samples, and padding={padding.value!r} does not change that; "
            "pass padding='longest'"
        )
    return max(shortest, longest)


class ASTFeatureExtractor(transformers.ASTFeatureExtractor):
    """`transformers.ASTFeatureExtractor`, fused. See `__call__` for the additional inputs.

    Frames are 25 ms long and 10 ms apart at any sampling rate, as in transformers with torchaudio installed.
    """

    @property
    def mel_config(self) -> MelConfig:
        """The convention of the extractor's attributes without `do_normalize`, which comes after padding."""
        win_length = self.sampling_rate * 25 // 1000
        return _preset(
            "ast",
            sample_rate=self.sampling_rate,
            n_fft=1 << (win_length - 1).bit_length(),
            win_length=win_length,
            hop_length=self.sampling_rate * 10 // 1000,
            n_mels=self.num_mel_bins,
            mean=0.0,
            std=1.0,
        )

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """AST's log-mel features, cut or zero-padded to `max_length` frames.

        Args:
            raw_speech: one clip, `[S]` samples in [-1, 1], or a batch, `[B, S]` or a list of clips; tensors, arrays
                or lists of numbers.
            sampling_rate: of `raw_speech`; checked if given.
            return_tensors: "pt" or "np"; None gives a list, of tensors for tensors and of arrays for anything else.

        Returns:
            `input_values` `[B, max_length, num_mel_bins]` float32.

        Raises:
            ValueError: another rate, or not mono.
        """
        _check_rate(self, sampling_rate)
        clips = _Clips.of(raw_speech)
        config = self.mel_config
        longest = config.win_length + (self.max_length - 1) * config.hop_length
        # A clip shorter than a window has no frame in transformers; `log_mel` would return one.
        kept = [clip[: longest if clip.shape[0] >= config.win_length else 0] for clip in clips.samples]
        features = [
            torch.nn.functional.pad(frames, (0, 0, 0, self.max_length - frames.shape[0]))
            for frames in _frames(kept, config)
        ]
        if self.do_normalize:
            features = [(feature - self.mean) / (2 * self.std) for feature in features]
        return BatchFeature({"input_values": clips.output(features, return_tensors)})


class ClapFeatureExtractor(transformers.ClapFeatureExtractor):
    """`transformers.ClapFeatureExtractor`, fused. See `__call__` for the additional inputs.

    Crops are drawn from NumPy's global generator in the order of transformers: with one seed both draw the same.
    """

    def mel_config(self, truncation: str) -> MelConfig:
        """The convention of the extractor's attributes; `truncation="fusion"` has different filters."""
        return _preset(
            "clap-fused" if truncation == "fusion" else "clap",
            sample_rate=self.sampling_rate,
            n_fft=self.fft_window_size,
            win_length=self.fft_window_size,
            hop_length=self.hop_length,
            n_mels=self.feature_size,
            f_min=self.frequency_min,
            f_max=self.frequency_max,
        )

    def __call__(
        self,
        raw_speech: Any,
        truncation: str | None = None,
        padding: bool | str | None = None,
        max_length: int | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """CLAP's log-mel features.

        Args:
            raw_speech: one clip, `[S]` samples in [-1, 1], or a batch, `[B, S]` or a list of clips; tensors, arrays
                or lists of numbers.
            truncation: of longer clips: "rand_trunc", a random crop, or "fusion", a downscaled view of the whole clip
                and three random crops; None is the extractor's setting.
            padding: of shorter clips: "repeatpad", as many repeats as fit, then zeros; "repeat", repeats, the last one
                cut; anything else, zeros; None or True is the extractor's setting.
            max_length: samples; None is `max_length_s`, 10 s.
            sampling_rate: of `raw_speech`; checked if given.
            return_tensors: "pt" or "np"; None gives a list, of tensors for tensors and of arrays for anything else.

        Returns:
            `input_features` `[B, 1, frames, n_mels]` float32, or `[B, 4, ...]` with "fusion", and `is_longer` `[B, 1]`
            bool.

        Raises:
            ValueError: another rate, not mono, no samples, or an unknown `truncation`.
        """
        _check_rate(self, sampling_rate)
        truncation = self.truncation if truncation is None else truncation
        if truncation not in ("rand_trunc", "fusion"):
            raise ValueError(f"truncation is {truncation!r}; choose 'rand_trunc' or 'fusion'")
        padding = self.padding if padding is None or padding is True else padding
        max_length = max_length or self.nb_max_samples
        clips = _Clips.of(raw_speech)
        config = self.mel_config(truncation)
        chunk_frames = max_length // self.hop_length + 1
        samples, is_longer, crops = [], [], []
        for index, clip in enumerate(clips.samples):
            if clip.shape[0] == 0:
                raise ValueError(f"clip {index} has no samples")
            longer = clip.shape[0] > max_length
            starts: list[int] | None = None
            if not longer:
                clip = _lengthened(clip, max_length, padding)
            elif truncation == "rand_trunc":
                start = np.random.randint(0, clip.shape[0] - max_length + 1)
                clip = clip[start : start + max_length]
            elif config.num_frames(clip.shape[0]) > chunk_frames:
                starts = _crop_starts(config.num_frames(clip.shape[0]) - chunk_frames + 1)
            else:
                longer = False
            samples.append(clip)
            is_longer.append(longer)
            crops.append(starts)
        features = [
            _views(frames, starts, chunk_frames, 4 if truncation == "fusion" else 1)
            for frames, starts in zip(_frames(samples, config), crops, strict=True)
        ]
        if truncation == "fusion" and not any(is_longer):
            # As in transformers: the fusion of the model never gets a batch without a longer clip.
            is_longer[np.random.randint(0, len(is_longer))] = True
        flags: Any = [[longer] for longer in is_longer]
        if return_tensors is not None:
            flags = _stack(torch.tensor(flags, device=samples[0].device), return_tensors)
        return BatchFeature({"input_features": clips.output(features, return_tensors), "is_longer": flags})


def _lengthened(clip: Tensor, length: int, padding: bool | str) -> Tensor:
    if padding in ("repeat", "repeatpad"):
        repeats = length // clip.shape[0] + (padding == "repeat" and clip.shape[0] < length)
        clip = clip.repeat(repeats)[:length]
    return torch.nn.functional.pad(clip, (0, length - clip.shape[0]))


def _crop_starts(choices: int) -> list[int]:
    """First frame of a crop in each third of the clip; 0 for an empty third."""
    thirds = np.array_split(np.arange(choices), 3)
    return [int(np.random.choice(third if len(third) else [0])) for third in thirds]


def _views(frames: Tensor, starts: list[int] | None, chunk_frames: int, n_views: int) -> Tensor:
    """`[n_views, F, n_mels]`: the frames repeated, or the downscaled whole clip and its crops."""
    if starts is None:
        return frames.expand(n_views, -1, -1).contiguous()
    whole = torch.nn.functional.interpolate(
        frames[None, None], size=(chunk_frames, frames.shape[1]), mode="bilinear", align_corners=False
    )[0, 0]
    return torch.stack([whole, *(frames[start : start + chunk_frames] for start in starts)])
