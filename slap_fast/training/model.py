"""The module that an engine trains: student, prototype head and EMA teacher, with the three losses (SLAP, section 3).

The losses are computed inside `forward`: under ZeRO-3 a parameter is whole only while its module runs.
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
from slap_fast.ops.contrastive import ContrastiveOutput, contrastive_loss
from slap_fast.ops.linear_cross_entropy import linear_cross_entropy
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from slap_fast.training.losses import mean_over_tokens, teacher_agreement, unit_rows, usage_entropy


class _StudentOutput(NamedTuple):
    """The student's forward pass over N clips with T audio tokens."""

    patches: Tensor  # [T, patch], with SpecAugment
    features: Tensor  # [T, width]
    audio: Tensor  # [N, D]
    text: Tensor  # [N, D]
    logit_scale: Tensor  # [1]


@dataclass(frozen=True)
class GlobalBatchContext:
    """Results over the whole batch from which a micro-batch of n clips computes its part of the whole batch's gradient.

    Attributes:
        audio_gradient: `[n, D]`, of the contrastive loss with respect to the audio embeddings.
        text_gradient: `[n, D]`, with respect to the text embeddings.
        logit_scale_gradient: `[1]`, with respect to the logit scale; 0 in all micro-batches of a rank but one.
        teacher_bottleneck: `[M, B]`, output of the teacher's head at the masked tokens.
        teacher_prototypes: `[K, B]`.
        potential: `[K]`, `sinkhorn_potential` over the masked tokens of the whole batch.
        clip_share: the micro-batch's share of the clips of all ranks, times the number of ranks.
        token_share: `[]`, the same for caption tokens.
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
    """Student, teacher and losses in one module.

    `losses` and `micro_batch_losses` run every trained module, also for an objective of weight 0: ZeRO relies on it.

    Args:
        config: of student and teacher.
        objectives: weights and temperatures of the losses.
        load_pretrained_text: read the weights of `config.text.pretrained`; False builds its architecture only.
        contrastive_exchange: "gather" or "ring", see `contrastive_loss`.
    """

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
        """`(name, teacher parameter, student parameter)` for each teacher parameter."""
        for prefix, teacher, student in (
            ("teacher_encoder", self.teacher_encoder, self.student.audio_encoder),
            ("teacher_head", self.teacher_head, self.student_head),
        ):
            student_parameters = dict(student.named_parameters())
            for name, parameter in teacher.named_parameters():
                yield f"{prefix}.{name}", parameter, student_parameters[name]

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
        self, *inputs: Any, call: Literal["losses", "embeddings", "micro_batch_losses"] = "losses"
    ) -> dict[str, Tensor]:
        """Run the method named `call`: an engine runs `forward` only, and ZeRO-3 puts its hooks around it."""
        return getattr(self, call)(*inputs)

    def losses(
        self, batch: Batch, teacher_temperature: float, group: ProcessGroup | None = None, detailed: bool = False
    ) -> dict[str, Tensor]:
        """The losses of this rank's batch.

        Args:
            batch: on the device of the model.
            teacher_temperature: of this step.
            group: the ranks that share the global batch; None: this process alone.
            detailed: also compute `prototype_entropy`, another pass over the prototypes; the same on every rank.

        Returns:
            0-dim float32 tensors: `loss`, the weighted sum, whose gradient averaged over ranks is the global gradient;
            `contrastive`, `self_distillation`, `caption`; and the metrics `accuracy`, `positive_similarity`,
            `negative_similarity`, `logit_scale`, `teacher_agreement`, and if `detailed` `prototype_entropy`.
        """
        student = self._run_student(batch)
        contrast = self.contrastive(student.audio, student.text, student.logit_scale, batch.clip_ids, group)
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
        """Tensors of a micro-batch of n clips with M masked tokens that the losses of the whole batch compare.

        Returns:
            `audio` `[n, D]`, `text` `[n, D]`, `logit_scale` `[1]`, `teacher_bottleneck` `[M, B]` and
            `teacher_prototypes` `[K, B]`.
        """
        student = self._run_student(batch)
        bottleneck, prototypes = self._teacher_bottleneck(batch)
        return {
            "audio": student.audio,
            "text": student.text,
            "logit_scale": student.logit_scale,
            "teacher_bottleneck": bottleneck,
            "teacher_prototypes": prototypes,
        }

    def micro_batch_losses(
        self, batch: Batch, teacher_temperature: float, context: GlobalBatchContext
    ) -> dict[str, Tensor]:
        """The terms of a micro-batch in the losses of the whole batch.

        Returns:
            0-dim float32 tensors: `loss`, whose gradients, summed over the micro-batches of a rank, are those of the
            whole batch's loss (its value has no meaning); `self_distillation`, `caption` and `teacher_agreement`, whose
            sums are those of the whole batch.
        """
        student = self._run_student(batch)
        caption = context.token_share * self._caption(batch, student, None)
        student_side = self._student_bottleneck(batch, student)
        distillation = context.clip_share * self._distillation(
            batch,
            student_side,
            (context.teacher_bottleneck, context.teacher_prototypes),
            teacher_temperature,
            potential=context.potential,
        )
        # Linear in the embeddings, so that their gradients are those of `context`.
        contrast = (
            (student.audio * context.audio_gradient).sum()
            + (student.text * context.text_gradient).sum()
            + (student.logit_scale * context.logit_scale_gradient).sum()
        )
        return {
            "loss": self.weighted_sum(contrast, distillation, caption),
            "self_distillation": distillation.detach(),
            "caption": caption.detach(),
            "teacher_agreement": context.clip_share
            * teacher_agreement(student_side[0], context.teacher_bottleneck, batch.masked),
        }

    def contrastive(
        self, audio: Tensor, text: Tensor, logit_scale: Tensor, clip_ids: Tensor, group: ProcessGroup | None
    ) -> ContrastiveOutput:
        """The contrastive loss of `[N, D]` embeddings, not normalized; clips of equal ids are positives."""
        return contrastive_loss(
            unit_rows(audio),
            unit_rows(text),
            logit_scale,
            ids=clip_ids,
            group=group,
            exchange=self.contrastive_exchange,
        )

    def weighted_sum(self, contrastive: Tensor, self_distillation: Tensor, caption: Tensor) -> Tensor:
        """The total loss."""
        weights = self.objectives
        return (
            weights.contrastive_weight * contrastive
            + weights.self_distillation_weight * self_distillation
            + weights.caption_weight * caption
        )

    def _run_student(self, batch: Batch) -> _StudentOutput:
        student = self.student
        patches = self._patches(batch, time_masked=batch.time_masked, mel_masked=batch.mel_masked)
        hidden = batch.masked_tokens if self.objectives.shared_pass else None
        features = student.audio_encoder(patches, batch.tokens, hidden)
        text_features = student.text_encoder(batch.input_ids, batch.text)
        logit_scale = student.logit_scale()
        audio = student.audio_pooling(features, batch.tokens)
        text = student.text_pooling(text_features, batch.text)
        return _StudentOutput(patches, features, audio, text, logit_scale)

    def _student_bottleneck(self, batch: Batch, student: _StudentOutput) -> tuple[Tensor, Tensor]:
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

    def _caption(self, batch: Batch, student: _StudentOutput, group: ProcessGroup | None) -> Tensor:
        inputs, targets, layout = _shift_captions(batch)
        return self.student.caption_decoder(
            inputs,
            layout,
            student.features,
            batch.tokens,
            readout=lambda hidden, vocabulary: mean_over_tokens(
                linear_cross_entropy(hidden, vocabulary, targets, reduction="sum"), targets, group=group
            ),
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
        return prototype_cross_entropy(
            student_features,
            teacher_features,
            student_prototypes,
            teacher_prototypes,
            student_temperature=self.objectives.student_temperature,
            teacher_temperature=teacher_temperature,
            cu_seqlens=batch.masked.cu_seqlens,
            sinkhorn_iterations=self.objectives.sinkhorn_iterations,
            potential=potential,
            group=group,
        )


def _shift_captions(batch: Batch) -> tuple[Tensor, Tensor, PackedLayout]:
    """Inputs, targets and layout for teacher forcing: each token of a caption but the last predicts the next one."""
    layout = PackedLayout.from_lengths([length - 1 for length in batch.text.lengths], device=batch.input_ids.device)
    position = torch.arange(layout.total, device=batch.input_ids.device) + layout.segment_ids()
    return batch.input_ids[position], batch.input_ids[position + 1], layout
