"""`SlapProcessor`: audio and text as inputs of `SlapModel`, by `SlapFeatureExtractor` and the model's tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin, SequenceFeatureExtractor

from slap_fast.config.saved_files import read_json_object, read_tokenizer, save_tokenizer
from slap_fast.errors import ModelError
from slap_fast.models.arguments import split_clips, waveform
from slap_fast.models.hub import model_folder
from slap_fast.models.saving import read_config


class SlapFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms at the model's rate, zero-padded to the longest; `SlapModel` computes the log-mel spectrogram.

    Args:
        sampling_rate: Hz, of the model.
    """

    model_input_names: ClassVar[list[str]] = ["input_values", "input_lengths"]

    def __init__(self, sampling_rate: int = 16_000, **others: Any) -> None:
        others = {"feature_size": 1, "padding_value": 0.0} | others
        super().__init__(sampling_rate=sampling_rate, **others)

    def __call__(
        self, audio: Any, *, sampling_rate: float | None = None, return_tensors: str | None = None, padding: bool = True
    ) -> BatchFeature:
        """
        Args:
            audio: as in `SLAP.encode_audio`: one clip or a list, of any durations.
            sampling_rate: Hz, of samples without their own rate; other rates than the model's are resampled.
            return_tensors: "pt" for tensors; "np" or None for arrays.
            padding: must be True; nothing is truncated.

        Returns:
            `input_values` `[N, S]` float32, and `input_lengths` `[N]` int64, samples before the padding.

        Raises:
            ValueError: as `SLAP.encode_audio`, or an argument cannot be honored.
            AudioError: a file cannot be read.
        """
        if return_tensors not in ("pt", "np", None) or padding is False:
            raise ValueError(
                f"return_tensors is {return_tensors!r} and padding {padding!r}; give 'pt' or 'np', and True"
            )
        device = torch.device("cpu")
        clips = [waveform(clip, self.sampling_rate, sampling_rate, device) for clip in split_clips(audio)[1]]
        if not clips:
            raise ValueError("audio holds no clip; pass one or more")
        values = {
            "input_values": pad_sequence(clips, batch_first=True),
            "input_lengths": torch.tensor([len(clip) for clip in clips]),
        }
        return BatchFeature(values if return_tensors == "pt" else {name: np.asarray(v) for name, v in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Without `feature_extractor_type`, so that AutoFeatureExtractor finds the class by the model's config.json."""
        values = super().to_dict()
        values.pop("feature_extractor_type", None)
        return values


class SlapTokenizer(PreTrainedTokenizerFast):
    """Loads the tokenizer of a SLAP model, which is in its folder `tokenizer/`, for AutoTokenizer."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *inputs: Any, revision: str | None = None, **others: Any
    ) -> PreTrainedTokenizerFast:
        """
        Raises:
            ModelError: the model has no tokenizer, or its files are damaged or name code.
        """
        del inputs
        name = pretrained_model_name_or_path
        folder = model_folder(name, revision=None if os.path.isdir(name) else revision, token=others.get("token"))
        if not (folder / "tokenizer").is_dir():
            raise ModelError(f"{folder}: it has no tokenizer/; copy it from the training dataset's folder")
        tokenizer = read_tokenizer(folder / "tokenizer")
        tokenizer.model_max_length = read_config(read_json_object(folder / "config.json"))[1].text.max_length
        return tokenizer


class SlapProcessor(ProcessorMixin):
    """Inputs of `SlapModel` from audio and text. `processor(text=[...], audio=[...], sampling_rate=..., ...)`."""

    attributes: ClassVar[list[str]] = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "AutoFeatureExtractor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, feature_extractor: SlapFeatureExtractor, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        *,
        sampling_rate: float | None = None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> BatchFeature:
        """
        Args:
            text: one text or a list.
            audio, sampling_rate: as in `SlapFeatureExtractor`.
            return_tensors: "pt" for tensors, "np" for arrays.
            padding, truncation, max_length: of the texts, as in transformers; by default they are padded to the longest
                and cut at the model's maximum.

        Returns:
            `input_ids` and `attention_mask` `[M, L]` of texts, `input_values` and `input_lengths` of audio.

        Raises:
            ValueError: no text or clip is given, or as `SlapFeatureExtractor`.
            AudioError: a file cannot be read.
        """
        if text is None and audio is None:
            raise ValueError("neither text nor audio is given; pass one or both")
        values: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if not texts:
                raise ValueError("text is an empty list; pass one or more texts")
            ids = self.tokenizer(
                texts,
                return_tensors=return_tensors,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
            )
            values |= {name: ids[name] for name in ("input_ids", "attention_mask")}
        if audio is not None:
            values |= self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors=return_tensors)
        return BatchFeature(values)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, *, revision: str | None = None, **others: Any
    ) -> SlapProcessor:
        """
        Raises:
            ModelError: as `SLAP.from_pretrained`, or the model has no tokenizer.
        """
        name = pretrained_model_name_or_path
        folder = model_folder(name, revision=None if os.path.isdir(name) else revision, token=others.get("token"))
        sample_rate = read_config(read_json_object(folder / "config.json"))[1].mel.sample_rate
        return cls(SlapFeatureExtractor(sampling_rate=sample_rate), SlapTokenizer.from_pretrained(folder))

    def save_pretrained(self, save_directory: str | os.PathLike, **others: Any) -> None:  # type: ignore[override]
        """Write the tokenizer and the sampling rate into the folder of a model."""
        self.feature_extractor.save_pretrained(save_directory)
        save_tokenizer(self.tokenizer, Path(save_directory) / "tokenizer")
