"""The SLAP model: two towers, two poolings, a caption decoder and a temperature (arXiv 2601.12594, section 3)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from slap_fast.config.model import OBJECTIVES, ModelConfig
from slap_fast.errors import ModelError
from slap_fast.models import captioning, encoding, publishing, saving
from slap_fast.models.arguments import Audio, single_clip
from slap_fast.models.audio_encoder import AudioEncoder
from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.models.encoding import Embeddings, PackedBatch
from slap_fast.models.hub import model_folder
from slap_fast.models.logit_scale import LogitScale
from slap_fast.models.long_audio import Long, check_long
from slap_fast.models.pooling import AttentionPooling
from slap_fast.models.quantization import Precision, apply_precision, check_precision, require_float
from slap_fast.models.text_encoder import TextEncoder, build_text_model, vocabulary_size
from slap_fast.ops.log_mel.patches import log_mel_patches
from slap_fast.ops.packed import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Towers = Literal["all", "audio"]


def check_towers(towers: str) -> None:
    """
    Raises:
        ValueError: it is not one of `Towers`.
    """
    if towers not in get_args(Towers):
        raise ValueError(f"towers is {towers!r}; choose one of {', '.join(map(repr, get_args(Towers)))}")


_PARTS = {
    "text_encoder": ("text tower", "contrastive"),
    "audio_pooling": ("audio pooling", "contrastive"),
    "text_pooling": ("text pooling", "contrastive"),
    "logit_scale": ("logit scale", "contrastive"),
    "caption_decoder": ("caption decoder", "caption"),
}
"""Name in messages of each part that a model can lack, and the objective that adds it."""


class SLAP(nn.Module):
    """Embeds audio of any duration and text in one space, and captions audio.

    Args:
        config: every dimension.
        objectives: of `OBJECTIVES`, those that the model is trained for. Without `contrastive`, `text_encoder`,
            `audio_pooling`, `text_pooling` and `logit_scale` are None; without `caption`, `caption_decoder` is None.
        load_pretrained_text: load the weights of `config.text.pretrained`; False builds the architecture alone.
        text_hf_config: transformers configuration of the text tower, as stored in a model folder; None: from `config`.
        towers: `audio` leaves out `text_encoder`, `text_pooling` and `caption_decoder`; such a model cannot be saved.

    Raises:
        ModelError: the towers' widths differ (no projection follows the pooling), or the pretrained text encoder
            cannot be loaded.
        ValueError: `objectives` is empty or has an unknown name.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        objectives: Sequence[str] = OBJECTIVES,
        load_pretrained_text: bool = True,
        text_hf_config: Any = None,
        towers: Towers = "all",
    ) -> None:
        super().__init__()
        if not objectives or not set(objectives) <= set(OBJECTIVES):
            raise ValueError(f"objectives is {list(objectives)!r}; list one or more of {', '.join(OBJECTIVES)}")
        self.objectives = tuple(name for name in OBJECTIVES if name in objectives)
        check_towers(towers)
        self.towers = towers
        contrastive = "contrastive" in objectives
        text_tower, caption = contrastive and towers == "all", "caption" in objectives and towers == "all"
        # Parts that stay None are reported by `require`, not by the type checker.
        self.text_encoder: TextEncoder = None  # type: ignore[assignment]
        self.audio_pooling: AttentionPooling = None  # type: ignore[assignment]
        self.text_pooling: AttentionPooling = None  # type: ignore[assignment]
        self.caption_decoder: CaptionDecoder = None  # type: ignore[assignment]
        self.logit_scale: LogitScale = None  # type: ignore[assignment]
        if text_tower:
            text_model = build_text_model(config.text, load_pretrained=load_pretrained_text, hf_config=text_hf_config)
            self.text_encoder = TextEncoder(text_model)
            if self.text_encoder.width != config.audio.width:
                raise ModelError(
                    f"the text tower is {self.text_encoder.width} wide, the audio tower {config.audio.width}; "
                    "embeddings are compared without a projection, so model.text.width and model.audio.width must be "
                    "equal"
                )
        elif caption:
            # The vocabulary alone: recorded here, because no text tower does it.
            vocabulary = vocabulary_size(config.text, from_pretrained=load_pretrained_text)
            config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=vocabulary))
        self.config = config.architecture
        self.audio_encoder = AudioEncoder(config)
        audio, text = config.audio, config.text
        if contrastive:
            self.audio_pooling = AttentionPooling(audio.width, audio.pooling_heads, audio.pooling_mlp_ratio)
        if text_tower:
            self.text_pooling = AttentionPooling(audio.width, text.pooling_heads, text.pooling_mlp_ratio)
        if caption:
            vocabulary = self.text_encoder.vocab_size if text_tower else config.text.vocab_size
            self.caption_decoder = CaptionDecoder(config.caption, vocab_size=vocabulary, feature_width=audio.width)
        if contrastive:
            self.logit_scale = LogitScale(config.logit_scale_init, config.logit_scale_max)
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids that the text tower or the caption decoder takes; None for a model without both."""
        if self.text_encoder is not None:
            return self.text_encoder.vocab_size
        return None if self.caption_decoder is None else self.caption_decoder.token_embedding.num_embeddings

    def require(self, part: str) -> None:
        """
        Raises:
            ModelError: the model lacks the part of this name, because it was trained without its objective.
        """
        if getattr(self, part) is None:
            name, objective = _PARTS[part]
            if self.towers == "audio" and objective in self.objectives:
                raise ModelError(f"this model has no {name}, because it was loaded with towers='audio'; leave that out")
            key = f"objectives.{objective}_weight"
            raise ModelError(
                f"this model has no {name}, because it was trained with {key}=0; use a model that was trained with "
                f"{key} above 0"
            )

    def train(self, mode: bool = True) -> SLAP:
        """
        Raises:
            ModelError: training mode is asked for, and the model has int8 weights.
        """
        if mode:
            require_float(self, "be trained")
        return super().train(mode)

    @property
    def device(self) -> torch.device:
        return self.audio_encoder.mask_token.device

    @property
    def embedding_dim(self) -> int:
        return self.config.audio.width

    def frontend(
        self,
        waveform: Tensor,
        samples: PackedLayout,
        frames: PackedLayout,
        tokens: PackedLayout,
        *,
        time_masked: Tensor | None = None,
        mel_masked: Tensor | None = None,
    ) -> Tensor:
        """`[S]` packed samples to `[T, patch_frames * patch_mels]` log-mel patches, the input of the audio encoder.

        Values where `time_masked` `[F]` or `mel_masked` `[N, n_mels]` is True are set to 0, the normalized mean.
        """
        return log_mel_patches(
            waveform,
            samples.cu_seqlens,
            self.config.mel,
            patch_frames=self.config.audio.patch_frames,
            patch_mels=self.config.audio.patch_mels,
            time_masked=time_masked,
            mel_masked=mel_masked,
            total_frames=frames.total,
            total_tokens=tokens.total,
        )

    def forward(
        self,
        audio: PackedBatch | Audio | Iterable[Audio] | None,
        texts: str | Iterable[str] | None = None,
        *,
        sampling_rate: float | None = None,
    ) -> Embeddings:
        """Embeddings with gradients, for a training loop of your own: `contrastive_loss(*model(audio, texts))`.

        All clips are packed into one batch, and all texts into another, on the device of the model. The caption decoder
        and the mask token are unused: wrap the model as `DistributedDataParallel(model, find_unused_parameters=True)`.

        Args:
            audio: clips as in `encode_audio` (gradients flow to samples that require them); or one `Batch` of
                `slap_fast.data`, with its SpecAugment masks and its captions; None: no clips.
            texts: as in `encode_text`; None: no texts.
            sampling_rate: as in `encode_audio`. Clips of more than `config.max_duration` are embedded in windows there.

        Raises:
            ValueError: as in `encode_audio` and `encode_text`.
            AudioError: a file cannot be read; the message has its index and path.
            ModelError: the model was trained without the contrastive objective.
        """
        self.require("logit_scale")
        if isinstance(audio, PackedBatch):
            if texts is not None or sampling_rate is not None:
                raise ValueError("a Batch has its own captions and sample rate; pass it alone")
            return encoding.embed_batch(self, audio)
        return encoding.embed(self, audio, texts, sampling_rate=sampling_rate)

    @overload
    def encode_audio(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        dense: Literal[False] = False,
        long: Long = "windows",
        batch_seconds: float = 600.0,
        progress: bool = False,
    ) -> Tensor: ...

    @overload
    def encode_audio(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        dense: Literal[True],
        long: Long = "windows",
        batch_seconds: float = 600.0,
        progress: bool = False,
    ) -> list[Tensor]: ...

    def encode_audio(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        dense: bool = False,
        long: Long = "windows",
        batch_seconds: float = 600.0,
        progress: bool = False,
    ) -> Tensor | list[Tensor]:
        """Embed clips of any duration.

        On a CPU an embedding is bitwise independent of the batch: short clips are packed where native code multiplies,
        and each clip is encoded by itself where PyTorch does. On a GPU, clips are packed up to `batch_seconds`, and the
        batch changes an embedding by rounding only.

        Args:
            audio: one clip, or several in a list or any other ordered iterable. A clip is

                - the path of an audio file, its bytes, or an open binary file;
                - samples: `[S]`, `[1, S]` or `[S, 1]`, floats in [-1, 1] or int16;
                - samples with their rate: a pair `(samples, Hz)` or a dict with `array` and `sampling_rate`. These may
                  also be `[channels, S]` or `[S, channels]`, with at most 8 channels;
                - a dict with `bytes` or `path`, or a torchcodec `AudioDecoder`, as the `datasets` library returns them.

                Channels are averaged, other rates are resampled (soxr, HQ).
            sampling_rate: Hz, of samples without their own rate. If omitted, they are assumed to be at
                `config.mel.sample_rate`, with a warning.
            dense: one embedding per column of patches (160 ms for the paper's model) instead of one per clip. A model
                without the contrastive objective has these alone: it averages the features where others pool them.
            long: what happens to a clip of more than `config.max_duration` (30 s for the paper's model), the longest in
                training. `windows`: its embedding is the normalized mean of those of its windows, of 10 s every 5 s;
                dense embeddings are computed in windows of `max_duration` that overlap by a third. `whole`: it is
                encoded at once, at a cost that grows with the square of its length. Shorter clips are not affected.
            batch_seconds: seconds of audio per packed batch; on a CPU at most 60.
            progress: show a progress bar.

        Returns:
            `[N, D]` float32 unit-length embeddings on the CPU (`[1, D]` for a single clip). With `dense`, a list of
            `[columns, D]`, where each column is pooled with its neighbors and is comparable with text embeddings. They
            carry no gradient, but can be inputs of a trained module; `forward` returns embeddings with gradients.

        Raises:
            ValueError: a clip of an unknown or ambiguous form, or samples that are not finite or not in [-1, 1]; the
                message has its index. Or an unknown `long`.
            AudioError: a file cannot be read; the message has its index and path.
            ModelError: the model was trained without the contrastive objective, and `dense` is not set.
        """
        check_long(long)
        if not dense:
            self.require("audio_pooling")
        return encoding.encode_audio(
            self,
            audio,
            sampling_rate=sampling_rate,
            dense=dense,
            long=long,
            batch_seconds=batch_seconds,
            progress=progress,
        )

    def encode_text(self, texts: str | Iterable[str], *, batch_size: int = 256, progress: bool = False) -> Tensor:
        """`[N, D]` float32 unit-length embeddings on the CPU, `[1, D]` for a single string.

        Texts of more than `config.text.max_length` tokens are truncated, and a warning with their number is logged.

        Raises:
            ValueError: the model has no tokenizer, or an entry is not a string.
            ModelError: the model was trained without the contrastive objective.
        """
        self.require("text_encoder")
        return encoding.encode_text(self, texts, batch_size=batch_size, progress=progress)

    def caption(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        max_length: int = 64,
        batch_size: int = 64,
        progress: bool = False,
    ) -> list[str]:
        """Caption clips, by greedy decoding or beam search; a list even for a single clip.

        Features depend on the batch as in `encode_audio`: on a CPU not at all. Captions are decoded in batches, which
        changes the logits by rounding errors only: a caption can depend on the batch only where two tokens are equally
        probable to within these errors. A clip of more than `config.max_duration` gets one caption, from features of
        the whole; a warning is logged, because the model was not trained on as much.

        Args:
            audio: as in `encode_audio`.
            sampling_rate: as in `encode_audio`.
            beam_size: 1 for greedy decoding, which takes the most probable token at each step; else the number of
                beams, as `num_beams` of transformers.
            length_penalty: of beam search, as in transformers: the log-probability of a caption is divided by the
                number of its tokens to this power. Above 0 long captions are preferred, below 0 short ones.
            max_length: tokens after which a caption is cut, without the start and the end. A warning with the number of
                cut captions is logged.
            batch_size: clips that are decoded together; fewer if they have more than 640 s of audio. Beam search
                decodes `beam_size` captions of each.
            progress: show a progress bar.

        Raises:
            ValueError: as in `encode_audio`, or another argument is out of range.
            AudioError: a file cannot be read; the message has its index and path.
            ModelError: the model was trained without the caption objective, has no tokenizer, or gives logits that are
                not finite.
        """
        self.require("caption_decoder")
        return captioning.caption(
            self,
            audio,
            sampling_rate=sampling_rate,
            beam_size=beam_size,
            length_penalty=length_penalty,
            max_length=max_length,
            batch_size=batch_size,
            progress=progress,
        )

    def audio_features(
        self, audio: Audio | Iterable[Audio], *, sampling_rate: float | None = None
    ) -> tuple[Tensor, PackedLayout]:
        """Features of the audio encoder with gradients, to train modules of your own on; of whole clips at any length.

        `audio_pooling(features, tokens)` pools them to one vector per clip, as a linear head takes it. All clips are
        packed into one batch, without padding.

        Args:
            audio: clips as in `encode_audio`; gradients flow to samples that require them.
            sampling_rate: as in `encode_audio`.

        Returns:
            `[T, D]` features of the patches of all clips, in the dtype of the weights and not normalized: for each
            column of patches (160 ms for the paper's model) `config.tokens_per_column` rows, from low to high
            frequencies. And their layout: `lengths` has the number of rows of each clip, `cu_seqlens` their offsets.

        Raises:
            ValueError: as in `encode_audio`.
            AudioError: a file cannot be read; the message has its index and path.
        """
        return encoding.audio_features(self, audio, sampling_rate=sampling_rate)

    def similarity_over_time(
        self, audio: Audio, text: str, *, sampling_rate: float | None = None, long: Long = "windows"
    ) -> tuple[Tensor, Tensor]:
        """Similarity of a text to each column of patches of one clip.

        `slap_fast.inference.locating` does the same for streams of any length, in constant memory.

        Args:
            long: as in `encode_audio`.

        Returns:
            `[columns]` column centers in seconds and `[columns]` cosine similarities, both float32 on the CPU.
        """
        self.require("text_encoder")
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}; pass one string")
        (columns,) = self.encode_audio([single_clip(audio)], sampling_rate=sampling_rate, dense=True, long=long)
        times = (torch.arange(columns.shape[0], dtype=torch.float32, device="cpu") + 0.5) * self.config.column_seconds
        return times, columns @ self.encode_text(text)[0]

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `config.json`, `model.safetensors`, `text_config/` and `tokenizer/` into `folder`.

        `text_config/` is written only if the model has a text tower. Each file is replaced atomically: an interrupted
        save leaves the earlier ones intact.

        Raises:
            OSError: a file cannot be written.
        """
        saving.save_model(self, folder)

    def save_config_and_tokenizer(self, folder: str | os.PathLike) -> None:
        """Everything that `save_pretrained` writes except the weights.

        Raises:
            OSError: a file cannot be written.
        """
        saving.save_config_and_tokenizer(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        license: str | None = None,
        commit_message: str = "Upload the model",
        token: str | None = None,
    ) -> str:
        """Upload the model with a model card to the Hugging Face hub, in one commit; returns its URL.

        A README.md that the repository has already is kept. `slap-fast publish` writes a card with training and scores.

        Args:
            repo_id: `owner/name`; created if it does not exist.
            private: of a new repository; None: the default of the account.
            license: of the weights, such as `apache-2.0` or `cc-by-nc-4.0`; None: the card says that none is given.
            token: with write access; None: `HF_TOKEN`, or what `hf auth login` stored.

        Raises:
            ModelError: the hub cannot be reached or refuses; the message says what to do.
            OSError: the temporary files cannot be written.
        """
        return publishing.push_model(
            self, repo_id, private=private, license=license, commit_message=commit_message, token=token
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        token: str | None = None,
        towers: Towers = "all",
        precision: Precision = "fp32",
    ) -> SLAP:
        """Load a model that `save_pretrained` wrote, in eval mode.

        No code that the files contain or name is executed.

        Args:
            name_or_folder: a folder, or `owner/name` or `owner/name@revision` on the Hugging Face hub. An existing
                folder comes first.
            revision: branch, tag or commit on the hub; None: the main branch.
            token: of the hub; None: `HF_TOKEN`, or what `hf auth login` stored.
            towers: `audio` loads only what embeds audio, in a fraction of the time and memory: transformers is not
                even imported.
            precision: `bf16` converts all weights. `int8` quantizes those of the transformer blocks of both towers, for
                inference on a CPU: they need a quarter of the memory, and an embedding is within a cosine of 0.999 of
                the float32 one. Such a model can be neither trained nor saved. Without a note of it in a file,
                embeddings of different precision look alike.

        Raises:
            FileNotFoundError: a file is missing from the folder.
            ModelError: there is no such folder or model on the hub, or it cannot be accessed; a file is damaged or
                names code; or weights are not finite or do not have the shapes of the configuration. Or int8 is asked
                for on another device than a CPU, or without native code.
            ValueError: an unknown precision, or unknown `towers`.
        """
        check_precision(precision, device)
        check_towers(towers)
        folder = model_folder(name_or_folder, revision=revision, token=token)
        model = saving.load_model(cls, folder, towers=towers)
        apply_precision(model, precision, device)
        return model.to(device)
