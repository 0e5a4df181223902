"""What one engine trains: the student SLAP, its self-distillation head, and the EMA teacher of both (SLAP, section 3).

The losses are computed inside `forward`, because under ZeRO-3 a parameter is whole only while its module runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from slap_fast.data.batch import Batch
from slap_fast.models.config import ModelConfig
from slap_fast.models.prototype_head import PrototypeHead
from slap_fast.models.slap import SLAP
from slap_fast.objectives.captioning import captioning
from slap_fast.objectives.contrastive import contrastive
from slap_fast.objectives.self_distillation import self_distillation
from slap_fast.ops.packing import PackedLayout
from slap_fast.training.recipe import ObjectivesConfig


class PretrainingModel(nn.Module):
    """Every module runs in every call, on every rank, whatever the weights: ZeRO relies on it."""

    def __init__(self, config: ModelConfig, objectives: ObjectivesConfig, *, load_pretrained_text: bool = True) -> None:
        super().__init__()
        self.objectives = objectives
        self.student = SLAP(config, load_pretrained_text=load_pretrained_text)
        self.student_head = PrototypeHead(config.prototype, config.audio.width)
        self.teacher_encoder = copy.deepcopy(self.student.audio_encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)

    def teacher_pairs(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """Each teacher parameter with its name and the student parameter that it follows."""
        for prefix, teacher, student in (
            ("teacher_encoder", self.teacher_encoder, self.student.audio_encoder),
            ("teacher_head", self.teacher_head, self.student_head),
        ):
            followed = dict(student.named_parameters())
            for name, parameter in teacher.named_parameters():
                yield f"{prefix}.{name}", parameter, followed[name]

    def forward(self, batch: Batch, teacher_temperature: float, group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """The losses of one rank's batch.

        Args:
            batch: on the device of the model.
            teacher_temperature: of this step's schedule.
            group: the ranks that share the global batch; None: this process alone.

        Returns:
            0-dim float32 tensors: `loss`, the weighted sum, whose gradient averaged over ranks is the global one;
            `contrastive`, `self_distillation`, `caption`; and for the log `accuracy`, `positive_similarity`,
            `negative_similarity`, `logit_scale`.
        """
        student, weights = self.student, self.objectives
        frontend = partial(student.frontend, batch.waveform, batch.samples, batch.frames, batch.tokens)
        with torch.no_grad():
            patches = frontend()
            augmented = frontend(time_masked=batch.time_masked, mel_masked=batch.mel_masked)

        masked_features = student.audio_encoder(augmented, batch.tokens, batch.masked_tokens)
        features = masked_features if weights.shared_pass else student.audio_encoder(augmented, batch.tokens)

        text_features = student.text_encoder(batch.input_ids, batch.text)
        logit_scale = student.logit_scale()
        contrast = contrastive(
            student.audio_pooling(features, batch.tokens),
            student.text_pooling(text_features, batch.text),
            logit_scale,
            batch.clip_ids,
            group=group,
        )

        inputs, targets, input_layout = _shift_captions(batch)
        caption = student.caption_decoder(
            inputs,
            input_layout,
            features,
            batch.tokens,
            readout=lambda hidden, vocabulary: captioning(hidden, vocabulary, targets, group=group),
        )

        student_bottleneck, student_prototypes = self.student_head(masked_features[batch.masked_tokens])
        with torch.no_grad():
            teacher_features = self.teacher_encoder(patches, batch.tokens)
            teacher_bottleneck, teacher_prototypes = self.teacher_head(teacher_features[batch.masked_tokens])
        distillation = self_distillation(
            student_bottleneck,
            teacher_bottleneck,
            student_prototypes,
            teacher_prototypes,
            batch.masked,
            student_temperature=weights.student_temperature,
            teacher_temperature=teacher_temperature,
            sinkhorn_iterations=weights.sinkhorn_iterations,
            group=group,
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
            "accuracy": contrast.accuracy.detach(),
            "positive_similarity": contrast.positive_similarity.detach(),
            "negative_similarity": contrast.negative_similarity.detach(),
            "logit_scale": logit_scale.detach().squeeze(),
        }


def _shift_captions(batch: Batch) -> tuple[Tensor, Tensor, PackedLayout]:
    """Teacher forcing: every token but a caption's last predicts the next one."""
    layout = PackedLayout.from_lengths([length - 1 for length in batch.text.lengths], device=batch.input_ids.device)
    position = torch.arange(layout.total, device=batch.input_ids.device) + layout.segment_ids()
    return batch.input_ids[position], batch.input_ids[position + 1], layout
