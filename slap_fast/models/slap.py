"""SLAP: two towers in one embedding space and a caption decoder, for audio of any duration (arXiv 2601.12594)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slap_fast.models import inference
from slap_fast.models.audio_encoder import AudioEncoder
from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.models.config import ModelConfig, model_config_from_dict
from slap_fast.models.errors import ModelError
from slap_fast.models.logit_scale import LogitScale
from slap_fast.models.pooling import AttentionPooling
from slap_fast.models.text_encoder import TextEncoder, build_text_model
from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.packing import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Audio = np.ndarray | Tensor | str | os.PathLike


class SLAP(nn.Module):
    """The model that is trained, saved and used.

    Args:
        config: every dimension.
        load_pretrained_text: read the weights of `config.text.pretrained`; False builds the tower's architecture only.
        text_hf_config: a transformers configuration for the text tower, as a saved model carries it.

    Raises:
        ValueError: the towers' widths differ (an embedding is the pooled output itself, no projection follows), or the
            pretrained text encoder cannot be had.
    """

    def __init__(self, config: ModelConfig, *, load_pretrained_text: bool = True, text_hf_config: Any = None) -> None:
        super().__init__()
        text_model = build_text_model(config.text, load_pretrained=load_pretrained_text, hf_config=text_hf_config)
        self.text_encoder = TextEncoder(text_model)
        if self.text_encoder.width != config.audio.width:
            raise ValueError(
                f"the text tower is {self.text_encoder.width} wide, the audio tower {config.audio.width}; embeddings "
                "are compared without a projection, so model.text.width and model.audio.width must be equal"
            )
        self.config = config
        self.audio_encoder = AudioEncoder(config)
        audio, text = config.audio, config.text
        self.audio_pooling = AttentionPooling(audio.width, audio.pooling_heads, audio.pooling_mlp_ratio)
        self.text_pooling = AttentionPooling(audio.width, text.pooling_heads, text.pooling_mlp_ratio)
        self.caption_decoder = CaptionDecoder(
            config.caption, vocab_size=self.text_encoder.vocab_size, feature_width=audio.width
        )
        self.logit_scale = LogitScale(config.logit_scale_init, config.logit_scale_max)
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def device(self) -> torch.device:
        return self.audio_encoder.mask_token.device

    @property
    def embedding_dim(self) -> int:
        return self.config.audio.width

    def frontend(self, waveform: Tensor, samples: PackedLayout, frames: PackedLayout) -> Tensor:
        """`[S]` packed float32 samples to `[F, n_mels]` normalised log-mel frames."""
        return log_mel(waveform, samples.cu_seqlens, self.config.mel, total_frames=frames.total)

    def encode_audio(
        self, audio: Sequence[Audio], *, dense: bool = False, batch_seconds: float = 600.0, progress: bool = False
    ) -> Tensor | list[Tensor]:
        """Embed clips of any duration.

        On a CPU every clip runs by itself, so its embedding is bitwise the same in whatever company it comes. On a GPU
        clips are packed up to `batch_seconds`, and the company moves an embedding by no more than rounding.

        Args:
            audio: 1-D float waveforms in [-1, 1] (or int16) at the model's sample rate, or paths of audio files, which
                are mixed to mono and resampled.
            dense: embed every column of patches (160 ms for the paper's model) instead of the whole clip.
            batch_seconds: audio to hold in a pack on a GPU.
            progress: show a progress bar.

        Returns:
            `[N, D]` float32 embeddings of unit length on the CPU; with `dense` a list of `[columns, D]`, each column
            pooled together with its neighbours and comparable with a text embedding.

        Raises:
            ValueError: a waveform that is empty, not 1-D, or not finite, by its index.
            AudioError: a file that cannot be read, by its path.
        """
        return inference.encode_audio(self, audio, dense=dense, batch_seconds=batch_seconds, progress=progress)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> Tensor:
        """`[N, D]` float32 embeddings of unit length on the CPU.

        Raises:
            ValueError: the model carries no tokenizer, or an entry is not a string.
        """
        return inference.encode_text(self, texts, batch_size=batch_size, progress=progress)

    def caption(self, audio: Sequence[Audio], *, max_length: int = 64, progress: bool = False) -> list[str]:
        """Describe clips in words, by greedy decoding of at most `max_length` tokens."""
        return inference.caption(self, audio, max_length=max_length, progress=progress)

    def similarity_over_time(self, audio: Audio, text: str) -> tuple[Tensor, Tensor]:
        """Where in a clip a text fits: `[columns]` times in seconds (centres) and `[columns]` cosine similarities."""
        (columns,) = inference.encode_audio(self, [audio], dense=True, batch_seconds=600.0, progress=False)
        mel = self.config.mel
        seconds = self.config.audio.patch_frames * mel.hop_length / mel.sample_rate
        times = (torch.arange(columns.shape[0]) + 0.5) * seconds
        return times, columns @ self.encode_text([text])[0]

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `config.json`, `model.safetensors`, `text_config/` and `tokenizer/` into `folder`.

        Files are replaced whole: an interrupted save leaves the earlier ones as they were.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        temporary = folder / ".model.safetensors.partial"
        try:
            save_file(weights, temporary)
            os.replace(temporary, folder / "model.safetensors")
        finally:
            temporary.unlink(missing_ok=True)
        self.text_encoder.model.config.save_pretrained(folder / "text_config")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "tokenizer")
        temporary = folder / ".config.json.partial"
        temporary.write_text(json.dumps(dataclasses.asdict(self.config), indent=2) + "\n")
        os.replace(temporary, folder / "config.json")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, *, device: torch.device | str = "cpu") -> SLAP:
        """Load what `save_pretrained` wrote, ready for use.

        Raises:
            FileNotFoundError: `folder` lacks one of the files.
            ModelError: a file is malformed, or the weights are of another shape than the configuration says.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoTokenizer

        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "text_config/config.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; {folder} is not a folder of SLAP.save_pretrained")
        try:
            config = model_config_from_dict(json.loads((folder / "config.json").read_text()))
            weights = load_file(folder / "model.safetensors")
        except (ValueError, SafetensorError) as error:
            raise ModelError(f"a file of the model in {folder} is damaged ({error}); copy it again") from error
        model = cls(
            config,
            load_pretrained_text=False,
            text_hf_config=AutoConfig.from_pretrained(folder / "text_config"),
        )
        _check_weights(model, weights, folder / "model.safetensors")
        model.load_state_dict(weights)
        if (folder / "tokenizer").is_dir():
            model.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        return model.to(device).eval()


def _check_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ModelError(f"{path} lacks {name}; the weights do not belong to the config.json beside them")
        if name not in expected:
            raise ModelError(f"{path} holds {name}, which the model of the config.json beside it does not have")
        if weights[name].shape != expected[name].shape:
            raise ModelError(
                f"{name} has shape {tuple(weights[name].shape)} in {path}, but {tuple(expected[name].shape)} by the "
                "config.json beside it"
            )
