"""X-ARES encoder: the interface of the eXtensive Audio Representation and Evaluation Suite (arXiv 2505.16369).

X-ARES takes a file with a class that is created without arguments, and files results under the name of the class:

    from slap_fast.evaluation.leaderboards.x_ares import SlapEncoder

    class MyRunEncoder(SlapEncoder):
        def __init__(self) -> None:
            super().__init__("runs/slap/model")

Written to the protocol of xares 0.1.3 (its README and `check_audio_encoder`); xares itself is not run by our tests,
because it needs a torch of at most 2.9.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from slap_fast.models.encoding import encode_features, inference_context
from slap_fast.models.hub import model_folder
from slap_fast.models.slap import SLAP


class SlapEncoder(nn.Module):
    """Dense features of a SLAP model: one vector per column of patches (160 ms for the paper's model).

    A vector is the mean of the audio encoder's output over the patches of its column, before pooling, so a model that
    was trained by self-distillation alone can be evaluated, too.

    Args:
        model: a model; or its folder, or `owner/name` on the Hugging Face hub.

    Attributes:
        sampling_rate: Hz of the input.
        output_dim: D.
        hop_size_in_ms: from one vector to the next.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, model: SLAP | str | Path) -> None:
        super().__init__()
        self.model = (model if isinstance(model, SLAP) else SLAP.from_pretrained(model_folder(model))).eval()
        mel, audio = self.model.config.mel, self.model.config.audio
        self.sampling_rate = mel.sample_rate
        self.output_dim = audio.width
        self.hop_size_in_ms = 1000 * audio.patch_frames * mel.hop_length / mel.sample_rate

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Encode a batch of waveforms.

        Args:
            audio: `[B, T]` or `[T]` samples at `sampling_rate`.
            audio_attention_mask: `[B, T]`, 1 for samples and 0 for the padding at the end of a row, as the xares-llm
                variant of the suite passes it. X-ARES itself gives no lengths: padding is encoded as silence.

        Returns:
            `[B, T', D]` float32 on the device of the model. With a mask, each row is encoded without its padding and
            followed by zeros, and the second value is the mask of the vectors, `[B, T']` bool.

        Raises:
            ValueError: other dimensions, or a row without samples.
        """
        audio = audio[None] if audio.ndim == 1 else audio
        if audio.ndim != 2 or not audio.shape[1]:
            raise ValueError(f"audio has shape {tuple(audio.shape)}; it must be [B, T] or [T] with T > 0")
        lengths = [audio.shape[1]] * len(audio)
        if audio_attention_mask is not None:
            if audio_attention_mask.shape != audio.shape:
                raise ValueError(
                    f"audio_attention_mask has shape {tuple(audio_attention_mask.shape)}, audio {tuple(audio.shape)}"
                )
            lengths = audio_attention_mask.sum(1).long().tolist()
        if not all(lengths):
            raise ValueError(f"audio[{lengths.index(0)}] has no samples")
        samples = audio.to(device=self.model.device, dtype=torch.float32)
        with inference_context(self.model):
            features, tokens = encode_features(
                self.model, [row[:length] for row, length in zip(samples, lengths, strict=True)]
            )
        rows = self.model.config.tokens_per_column
        columns = [clip.unflatten(0, (-1, rows)).mean(1) for clip in features.float().split(list(tokens.lengths))]
        padded = nn.utils.rnn.pad_sequence(columns, batch_first=True)
        if audio_attention_mask is None:
            return padded
        counts = torch.tensor([len(clip) for clip in columns], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
