"""The pretraining model without packing: `[N, longest, width]` tensors, SDPA and boolean masks.

It runs the modules of a `PretrainingModel`, so weights and math are the same and only the layout differs. It is a
well-optimized padded implementation: masks and rotary tables are computed once per pass and shared by the layers, the
mask of the global layers has one row per clip, causal attention needs no mask, and losses skip padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.padded_layers import AudioMasks, decode, encode_audio, key_mask, pool
from slap_fast.config.model import ModelConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.ops.linear_cross_entropy import linear_cross_entropy
from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from slap_fast.training.model import PretrainingModel

IGNORED = -100


@dataclass(frozen=True)
class PaddedBatch:
    """A `Batch` with every clip padded to the longest: F frames, L tokens, C caption tokens.

    Attributes:
        waveform: `[N, S]`, zeros after a clip's end.
        samples: packed layout of the N padded waveforms, all of length S.
        frame_valid: `[N, F]` bool, F a multiple of the patch.
        token_valid: `[N, L]` bool.
        is_padded: whether `token_valid` is False anywhere, as a host bool.
        augmented: `[N, F, n_mels]` bool, True where SpecAugment masks; never past a clip's end.
        token_masked: `[N, L, 1]` bool, True where a token is masked for the student.
        masked_tokens: `[M]` int64 positions of the masked tokens in the flattened `[N * L]`.
        masked: layout of the clips in `masked_tokens`.
        input_ids: `[N, C]` int64.
        text_valid: `[N, C]` bool.
        targets: `[N, C - 1]` int64, the next tokens; -100 at padding.
        clip_ids: `[N]` int64.
    """

    waveform: Tensor
    samples: PackedLayout
    frame_valid: Tensor
    token_valid: Tensor
    is_padded: bool
    augmented: Tensor
    token_masked: Tensor
    masked_tokens: Tensor
    masked: PackedLayout
    input_ids: Tensor
    text_valid: Tensor
    targets: Tensor
    clip_ids: Tensor

    @classmethod
    def from_packed(cls, batch: Batch, config: ModelConfig) -> PaddedBatch:
        """Pad a packed batch; the result is on its device."""
        clips = len(batch)
        device = batch.waveform.device
        waveform = _pad(batch.waveform, batch.samples)
        longest = batch.tokens.max_seqlen
        frames = longest // config.tokens_per_column * config.audio.patch_frames
        time_masked = F.pad(_pad(batch.time_masked, batch.frames), (0, frames - batch.frames.max_seqlen))
        clip = batch.masked.segment_ids()
        masked_tokens = batch.masked_tokens + (clip * longest - batch.tokens.cu_seqlens[clip])
        token_masked = torch.zeros(clips * longest, dtype=torch.bool, device=device)
        token_masked[masked_tokens] = True
        frame_valid = _valid(batch.frames, frames)
        text_valid = _valid(batch.text, batch.text.max_seqlen)
        input_ids = _pad(batch.input_ids, batch.text)
        return cls(
            waveform=waveform,
            samples=PackedLayout.from_lengths([waveform.shape[1]] * clips, device=device, dtype=torch.int64),
            frame_valid=frame_valid,
            token_valid=_valid(batch.tokens, longest),
            is_padded=min(batch.tokens.lengths) < longest,
            augmented=(time_masked[:, :, None] | batch.mel_masked[:, None, :]) & frame_valid[:, :, None],
            token_masked=token_masked.view(clips, longest, 1),
            masked_tokens=masked_tokens,
            masked=batch.masked,
            input_ids=input_ids,
            text_valid=text_valid,
            targets=torch.where(text_valid, input_ids, IGNORED)[:, 1:],
            clip_ids=batch.clip_ids,
        )


class PaddedPretrainingModel(nn.Module):
    """`PretrainingModel.forward` over a `PaddedBatch`, in one process.

    Args:
        model: its modules are used, not copied; its text tower is switched to SDPA permanently.
    """

    def __init__(self, model: PretrainingModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.student.config
        model.student.text_encoder.model.set_attn_implementation("sdpa")

    def forward(self, batch: PaddedBatch, teacher_temperature: float) -> dict[str, Tensor]:
        """The losses, with the names of `PretrainingModel`."""
        student, weights = self.model.student, self.model.objectives
        with torch.no_grad():
            frames = self._frontend(batch)
        augmented = frames.masked_fill(batch.augmented, 0.0)
        masks = AudioMasks.build(batch.token_valid, batch.is_padded, self.config, frames.dtype)
        feature_mask = key_mask(batch.token_valid, batch.is_padded)

        masked_features = encode_audio(student.audio_encoder, augmented, masks, batch.token_masked)
        features = masked_features if weights.shared_pass else encode_audio(student.audio_encoder, augmented, masks)
        text = student.text_encoder.model(input_ids=batch.input_ids, attention_mask=batch.text_valid.long())
        contrast = self.model.contrastive(
            pool(student.audio_pooling, features, feature_mask),
            pool(student.text_pooling, text.last_hidden_state, key_mask(batch.text_valid, is_padded=True)),
            student.logit_scale(),
            batch.clip_ids,
            None,
        )

        decoder = student.caption_decoder
        hidden = decode(decoder, batch.input_ids[:, :-1], features, feature_mask)
        caption = linear_cross_entropy(hidden.flatten(0, 1), decoder.token_embedding.weight, batch.targets.flatten())

        student_bottleneck, student_prototypes = self.model.student_head(
            masked_features.flatten(0, 1)[batch.masked_tokens]
        )
        with torch.no_grad():
            teacher_features = encode_audio(self.model.teacher_encoder, frames, masks)
            teacher_bottleneck, teacher_prototypes = self.model.teacher_head(
                teacher_features.flatten(0, 1)[batch.masked_tokens]
            )
        distillation = prototype_cross_entropy(
            student_bottleneck,
            teacher_bottleneck,
            student_prototypes,
            teacher_prototypes,
            student_temperature=weights.student_temperature,
            teacher_temperature=teacher_temperature,
            cu_seqlens=batch.masked.cu_seqlens,
            sinkhorn_iterations=weights.sinkhorn_iterations,
        )
        loss = (
            weights.contrastive_weight * contrast.loss
            + weights.self_distillation_weight * distillation
            + weights.caption_weight * caption
        )
        return {
            "loss": loss,
            "contrastive": contrast.loss.detach(),
            "self_distillation": distillation.detach(),
            "caption": caption.detach(),
        }

    def _frontend(self, batch: PaddedBatch) -> Tensor:
        """`[N, F, n_mels]`; frames past a clip's end have the log floor, as those that fill up the last patch."""
        mel = self.config.mel
        clips, frames = batch.frame_valid.shape
        per_clip = mel.num_frames(batch.waveform.shape[1])
        mels = log_mel(batch.waveform.flatten(), batch.samples.cu_seqlens, mel, total_frames=clips * per_clip)
        mels = F.pad(mels.unflatten(0, (clips, per_clip)), (0, 0, 0, frames - per_clip))
        return torch.where(batch.frame_valid[:, :, None], mels, mel.normalized_floor)


def _pad(values: Tensor, layout: PackedLayout) -> Tensor:
    """`[total]` to `[N, longest]`, zeros after each item."""
    return pad_sequence(list(values.split(layout.lengths)), batch_first=True)


def _valid(layout: PackedLayout, length: int) -> Tensor:
    """`[N, length]` bool, True before each item's end."""
    position = torch.arange(length, device=layout.cu_seqlens.device)
    return position < layout.cu_seqlens.diff()[:, None]
