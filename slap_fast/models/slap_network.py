"""The SLAP network: two towers, two poolings, a caption decoder and a temperature (arXiv 2601.12594, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slap_fast.config.model import ModelConfig
from slap_fast.errors import ModelError
from slap_fast.models.audio_encoder import AudioEncoder
from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.models.logit_scale import LogitScale
from slap_fast.models.pooling import AttentionPooling
from slap_fast.models.text_encoder import TextEncoder, build_text_model
from slap_fast.ops.log_mel.patches import log_mel_patches
from slap_fast.ops.packed import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SLAPNetwork(nn.Module):
    """The modules of SLAP and the packed frontend before them; `SLAP` adds how they are used and saved.

    Args:
        config: every dimension.
        load_pretrained_text: read the weights of `config.text.pretrained`; False builds the tower's architecture only.
        text_hf_config: a transformers configuration for the text tower, as a saved model carries it.

    Raises:
        ModelError: the towers' widths differ (an embedding is the pooled output itself, no projection follows), or the
            pretrained text encoder cannot be had.
    """

    def __init__(self, config: ModelConfig, *, load_pretrained_text: bool = True, text_hf_config: Any = None) -> None:
        super().__init__()
        text_model = build_text_model(config.text, load_pretrained=load_pretrained_text, hf_config=text_hf_config)
        self.text_encoder = TextEncoder(text_model)
        if self.text_encoder.width != config.audio.width:
            raise ModelError(
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
        """`[S]` packed samples to the `[T, patch_frames * patch_mels]` patches that the audio encoder reads.

        Where `time_masked` `[F]` or `mel_masked` `[N, n_mels]` is True, a value is blanked to the normalised mean, 0.
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
