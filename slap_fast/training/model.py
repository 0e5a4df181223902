"""What one engine trains: the student SLAP, its self-distillation head, and the EMA teacher of both (SLAP, section 3).

The losses are computed inside `forward`, because under ZeRO-3 a parameter is whole only while its module runs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.models.prototype_head import PrototypeHead
from slap_fast.models.slap import SLAP
from slap_fast.objectives.captioning import captioning
from slap_fast.objectives.contrastive import contrastive
from slap_fast.objectives.self_distillation import self_distillation, teacher_agreement, usage_entropy
from slap_fast.ops.packed import PackedLayout


class _Student(NamedTuple):
    """What the student makes of a batch of N clips with T tokens."""

    patches: Tensor  # [T, patch], with SpecAugment
    features: Tensor  # [T, width]
    audio: Tensor  # [N, D]
    text: Tensor  # [N, D]
    logit_scale: Tensor  # [1]


@dataclass(frozen=True)
class Rest:
    """What a micro-batch of n clips has to know of the whole batch to give its part of the whole batch's gradient.

    Attributes:
        audio_gradient: `[n, D]`, of the contrastive loss by the audio embeddings.
        text_gradient: `[n, D]`, by the text embeddings.
        logit_scale_gradient: `[1]`, by the logit scale; 0 in all micro-batches of a rank but one.
        teacher_bottleneck: `[M, B]`, what the teacher's head gives at the masked tokens.
        teacher_prototypes: `[K, B]`.
        potential: `[K]`, of `sinkhorn_potential` over the masked tokens of the whole batch.
        clip_share: the micro-batch's share of the clips of all ranks, times the number of ranks.
        token_share: `[]`, the same of the caption tokens.
    """

    audio_gradient: Tensor
    text_gradient: Tensor
    logit_scale_gradient: Tensor
    teacher_bottleneck: Tensor
    teacher_prototypes: Tensor
    potential: Tensor
    clip_share: float
    token_share: Tensor


class PretrainingModel(nn.Module):
    """Every trained module runs in `losses` and in `part_losses`, whatever the weights: ZeRO relies on it."""

    def __init__(
        self,
        config: ModelConfig,
        objectives: ObjectivesConfig,
        *,
        load_pretrained_text: bool = True,
        contrastive_exchange: str = "gather",
    ) -> None:
        super().__init__()
        self.objectives = objectives
        self.contrastive_exchange = contrastive_exchange
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

    def tower_of(self, parameter: nn.Parameter) -> str:
        """`audio_encoder`, `text_encoder`, `caption_decoder`, or `heads` for every other part of the student."""
        return self._towers[parameter]

    @functools.cached_property
    def _towers(self) -> dict[nn.Parameter, str]:
        towers = dict.fromkeys(self.parameters(), "heads")
        for name in ("audio_encoder", "text_encoder", "caption_decoder"):
            towers |= dict.fromkeys(getattr(self.student, name).parameters(), name)
        return towers

    def forward(
        self, *inputs: Any, call: Literal["losses", "embeddings", "part_losses"] = "losses"
    ) -> dict[str, Tensor]:
        """The method named `call`: engines run `forward` alone, and ZeRO-3 has hooks around it."""
        return getattr(self, call)(*inputs)

    def losses(
        self, batch: Batch, teacher_temperature: float, group: ProcessGroup | None = None, detailed: bool = False
    ) -> dict[str, Tensor]:
        """The losses of one rank's batch.

        Args:
            batch: on the device of the model.
            teacher_temperature: of this step's schedule.
            group: the ranks that share the global batch; None: this process alone.
            detailed: also measure what takes another sweep over the prototypes; the same on every rank.

        Returns:
            0-dim float32 tensors: `loss`, the weighted sum, whose gradient averaged over ranks is the global one;
            `contrastive`, `self_distillation`, `caption`; and for the log `accuracy`, `positive_similarity`,
            `negative_similarity`, `logit_scale`, `teacher_agreement`, and if `detailed` `prototype_entropy`.
        """
        student = self._student(batch)
        contrast = contrastive(
            student.audio,
            student.text,
            student.logit_scale,
            batch.clip_ids,
            group=group,
            exchange=self.contrastive_exchange,
        )
        caption = self._caption(batch, student, group)
        student_side, teacher_side = self._student_bottleneck(batch, student), self._teacher_bottleneck(batch)
        distillation = self._distillation(batch, student_side, teacher_side, teacher_temperature, group=group)
        details = {}
        if detailed:
            details["prototype_entropy"] = usage_entropy(
                *teacher_side, teacher_temperature=teacher_temperature, group=group
            )
        return {
            "loss": self.weighted_sum(contrast.loss, distillation, caption),
            "contrastive": contrast.loss.detach(),
            "self_distillation": distillation.detach(),
            "caption": caption.detach(),
            "accuracy": contrast.accuracy.detach(),
            "positive_similarity": contrast.positive_similarity.detach(),
            "negative_similarity": contrast.negative_similarity.detach(),
            "logit_scale": student.logit_scale.detach().squeeze(),
            "teacher_agreement": teacher_agreement(student_side[0], teacher_side[0], batch.masked),
            **details,
        }

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """What the losses of the whole batch need of a micro-batch of n clips with M masked tokens.

        Returns:
            `audio` `[n, D]`, `text` `[n, D]`, `logit_scale` `[1]`, `teacher_bottleneck` `[M, B]` and
            `teacher_prototypes` `[K, B]`.
        """
        student = self._student(batch)
        bottleneck, prototypes = self._teacher_bottleneck(batch)
        return {
            "audio": student.audio,
            "text": student.text,
            "logit_scale": student.logit_scale,
            "teacher_bottleneck": bottleneck,
            "teacher_prototypes": prototypes,
        }

    def part_losses(self, batch: Batch, teacher_temperature: float, rest: Rest) -> dict[str, Tensor]:
        """The losses of a micro-batch as parts of those of the whole batch.

        Returns:
            0-dim float32 tensors: `loss`, whose gradients summed over the micro-batches of a rank are those of the
            whole batch's loss, and whose value means nothing; `self_distillation`, `caption` and `teacher_agreement`,
            whose sums are the whole batch's.
        """
        student = self._student(batch)
        caption = rest.token_share * self._caption(batch, student, None)
        student_side = self._student_bottleneck(batch, student)
        distillation = rest.clip_share * self._distillation(
            batch,
            student_side,
            (rest.teacher_bottleneck, rest.teacher_prototypes),
            teacher_temperature,
            potential=rest.potential,
        )
        # Linear in the embeddings, so that their gradients are the cached ones.
        contrast = (
            (student.audio * rest.audio_gradient).sum()
            + (student.text * rest.text_gradient).sum()
            + (student.logit_scale * rest.logit_scale_gradient).sum()
        )
        return {
            "loss": self.weighted_sum(contrast, distillation, caption),
            "self_distillation": distillation.detach(),
            "caption": caption.detach(),
            "teacher_agreement": rest.clip_share
            * teacher_agreement(student_side[0], rest.teacher_bottleneck, batch.masked),
        }

    def weighted_sum(self, contrastive: Tensor, self_distillation: Tensor, caption: Tensor) -> Tensor:
        weights = self.objectives
        return (
            weights.contrastive_weight * contrastive
            + weights.self_distillation_weight * self_distillation
            + weights.caption_weight * caption
        )

    def _student(self, batch: Batch) -> _Student:
        student = self.student
        patches = self._patches(batch, time_masked=batch.time_masked, mel_masked=batch.mel_masked)
        hidden = batch.masked_tokens if self.objectives.shared_pass else None
        features = student.audio_encoder(patches, batch.tokens, hidden)
        text_features = student.text_encoder(batch.input_ids, batch.text)
        logit_scale = student.logit_scale()
        audio = student.audio_pooling(features, batch.tokens)
        text = student.text_pooling(text_features, batch.text)
        return _Student(patches, features, audio, text, logit_scale)

    def _student_bottleneck(self, batch: Batch, student: _Student) -> tuple[Tensor, Tensor]:
        features = student.features
        if not self.objectives.shared_pass:
            features = self.student.audio_encoder(student.patches, batch.tokens, batch.masked_tokens)
        return self.student_head(features[batch.masked_tokens])

    @torch.no_grad()
    def _teacher_bottleneck(self, batch: Batch) -> tuple[Tensor, Tensor]:
        features = self.teacher_encoder(self._patches(batch), batch.tokens)
        return self.teacher_head(features[batch.masked_tokens])

    @torch.no_grad()
    def _patches(self, batch: Batch, **masks: Tensor) -> Tensor:
        return self.student.frontend(batch.waveform, batch.samples, batch.frames, batch.tokens, **masks)

    def _caption(self, batch: Batch, student: _Student, group: ProcessGroup | None) -> Tensor:
        inputs, targets, layout = _shift_captions(batch)
        return self.student.caption_decoder(
            inputs,
            layout,
            student.features,
            batch.tokens,
            readout=lambda hidden, vocabulary: captioning(hidden, vocabulary, targets, group=group),
        )

    def _distillation(
        self,
        batch: Batch,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor],
        teacher_temperature: float,
        *,
        potential: Tensor | None = None,
        group: ProcessGroup | None = None,
    ) -> Tensor:
        (student_features, student_prototypes), (teacher_features, teacher_prototypes) = student, teacher
        return self_distillation(
            student_features,
            teacher_features,
            student_prototypes,
            teacher_prototypes,
            batch.masked,
            student_temperature=self.objectives.student_temperature,
            teacher_temperature=teacher_temperature,
            sinkhorn_iterations=self.objectives.sinkhorn_iterations,
            potential=potential,
            group=group,
        )


def _shift_captions(batch: Batch) -> tuple[Tensor, Tensor, PackedLayout]:
    """Teacher forcing: every token but a caption's last predicts the next one."""
    layout = PackedLayout.from_lengths([length - 1 for length in batch.text.lengths], device=batch.input_ids.device)
    position = torch.arange(layout.total, device=batch.input_ids.device) + layout.segment_ids()
    return batch.input_ids[position], batch.input_ids[position + 1], layout
