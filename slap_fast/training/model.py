"""The module that an engine trains: student, prototype head and EMA teacher, with the three losses (SLAP, section 3).

The losses are computed inside `forward`: under ZeRO-3 a parameter is whole only while its module runs. An objective of
weight 0 has no modules and takes no part in any method.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.models.audio_encoder import AudioEncoder
from slap_fast.models.prototype_head import PrototypeHead
from slap_fast.models.slap import SLAP
from slap_fast.ops.contrastive import ContrastiveOutput, contrastive_loss
from slap_fast.ops.linear_cross_entropy import linear_cross_entropy
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from slap_fast.training.losses import contrastive_metrics, mean_over_tokens, teacher_agreement, unit_rows, usage_entropy

_TOWERS = ("audio_encoder", "text_encoder", "caption_decoder")


class ContrastiveTensors(NamedTuple):
    """What the contrastive loss compares, of N clips; or the gradients of the loss with respect to it."""

    audio: Tensor  # [N, D]
    text: Tensor  # [N, D]
    logit_scale: Tensor  # [1]


@dataclass(frozen=True)
class TeacherTargets:
    """
    Attributes:
        bottleneck: `[M, B]`, output of the teacher's head at the masked tokens of a micro-batch.
        prototypes: `[K, B]`.
        potential: `[K]`, `sinkhorn_potential` over the masked tokens of the whole batch.
    """

    bottleneck: Tensor
    prototypes: Tensor
    potential: Tensor


@dataclass(frozen=True)
class GlobalBatchContext:
    """Results over the whole batch from which a micro-batch of n clips computes its part of the whole batch's gradient.

    Attributes:
        contrastive: `[n, D]`, `[n, D]` and `[1]`: gradients of the contrastive loss with respect to the embeddings and
            the logit scale; the latter is 0 in all micro-batches of a rank but one. None without the objective.
        teacher: None without self-distillation.
        token_share: `[]`, the micro-batch's share of the caption tokens of all ranks, times the number of ranks; None
            without captioning.
        clip_share: the same for clips.
    """

    contrastive: ContrastiveTensors | None
    teacher: TeacherTargets | None
    token_share: Tensor | None
    clip_share: float


class PretrainingModel(nn.Module):
    """Student, teacher and losses in one module.

    A parameter that is trained takes part in `losses` and `micro_batch_losses` of every batch: ZeRO relies on it.

    Args:
        config: of student and teacher.
        objectives: weights and temperatures of the losses. Without self-distillation, `student_head`,
            `teacher_encoder` and `teacher_head` are None; for the other objectives see `SLAP`.
        load_pretrained_text: read the weights of `config.text.pretrained`; False builds its architecture only.
        text_hf_config: as of `SLAP`.
        contrastive_exchange: "gather" or "ring", see `contrastive_loss`.
    """

    def __init__(
        self,
        config: ModelConfig,
        objectives: ObjectivesConfig,
        *,
        load_pretrained_text: bool = True,
        text_hf_config: Any = None,
        contrastive_exchange: str = "gather",
    ) -> None:
        super().__init__()
        self.objectives = objectives
        self.contrastive_exchange = contrastive_exchange
        self.student = SLAP(
            config,
            objectives=objectives.active,
            load_pretrained_text=load_pretrained_text,
            text_hf_config=text_hf_config,
        )
        self.student_head: PrototypeHead = None  # type: ignore[assignment]
        self.teacher_encoder: AudioEncoder = None  # type: ignore[assignment]
        self.teacher_head: PrototypeHead = None  # type: ignore[assignment]
        if self._has("self_distillation"):
            self.student_head = PrototypeHead(config.prototype, config.audio.width)
            self.teacher_encoder = copy.deepcopy(self.student.audio_encoder).requires_grad_(False)
            self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.student.audio_encoder.mask_token.requires_grad_(objectives.masks_tokens)

    def teacher_pairs(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """`(name, teacher parameter, student parameter)` for each teacher parameter; none without a teacher.

        A frozen part of the student is its own teacher, and is left out.
        """
        if self.teacher_encoder is None:
            return
        for prefix, teacher, student in (
            ("teacher_encoder", self.teacher_encoder, self.student.audio_encoder),
            ("teacher_head", self.teacher_head, self.student_head),
        ):
            if teacher is student:
                continue
            student_parameters = dict(student.named_parameters())
            for name, parameter in teacher.named_parameters():
                yield f"{prefix}.{name}", parameter, student_parameters[name]

    def tower_of(self, parameter: nn.Parameter) -> str:
        """`audio_encoder`, `text_encoder`, `caption_decoder`, or `heads` for every other part of the student."""
        return self._towers[parameter]

    @functools.cached_property
    def trained_towers(self) -> frozenset[str]:
        """The names of `tower_of` that have a trained parameter."""
        return frozenset(tower for parameter, tower in self._towers.items() if parameter.requires_grad)

    @functools.cached_property
    def _towers(self) -> dict[nn.Parameter, str]:
        towers = dict.fromkeys(self.parameters(), "heads")
        for name in _TOWERS:
            if (tower := getattr(self.student, name)) is not None:
                towers |= dict.fromkeys(tower.parameters(), name)
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
            each active objective's loss, of `contrastive`, `self_distillation` and `caption`; and the metrics of the
            active ones: `accuracy`, `positive_similarity`, `negative_similarity` and `logit_scale`;
            `teacher_agreement`, and if `detailed` `prototype_entropy`.
        """
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        patches = self._student_patches(batch)
        features = self._student_features(batch, patches)
        if self._has("contrastive"):
            embeddings = self._embed(batch, features)
            contrast = self.contrastive(*embeddings, batch.clip_ids, group)
            losses["contrastive"] = contrast.loss
            metrics |= contrastive_metrics(contrast, embeddings.logit_scale)
        if self._has("caption"):
            losses["caption"] = self._caption(batch, features, group)
        if self._has("self_distillation"):
            student = self._student_bottleneck(batch, patches, features)
            teacher = self._teacher_bottleneck(batch)
            losses["self_distillation"] = self._distillation(batch, student, teacher, teacher_temperature, group=group)
            metrics["teacher_agreement"] = teacher_agreement(student[0], teacher[0], batch.masked)
            if detailed:
                metrics["prototype_entropy"] = usage_entropy(
                    *teacher, teacher_temperature=teacher_temperature, group=group
                )
        return {
            "loss": self.weighted_sum(losses),
            **{name: value.detach() for name, value in losses.items()},
            **metrics,
        }

    @property
    def needs_embeddings(self) -> bool:
        """Whether a micro-batch depends on `embeddings` of the whole batch: not for captions alone."""
        return self._has("contrastive") or self._has("self_distillation")

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """Tensors of a micro-batch of n clips with M masked tokens that the losses of the whole batch compare.

        Returns:
            For the contrastive loss `audio` `[n, D]`, `text` `[n, D]` and `logit_scale` `[1]`; for self-distillation
            `teacher_bottleneck` `[M, B]` and `teacher_prototypes` `[K, B]`.
        """
        outputs: dict[str, Tensor] = {}
        if self._has("contrastive"):
            features = self._student_features(batch, self._student_patches(batch))
            outputs |= self._embed(batch, features)._asdict()
        if self._has("self_distillation"):
            outputs["teacher_bottleneck"], outputs["teacher_prototypes"] = self._teacher_bottleneck(batch)
        return outputs

    def micro_batch_losses(
        self, batch: Batch, teacher_temperature: float, context: GlobalBatchContext
    ) -> dict[str, Tensor]:
        """The terms of a micro-batch in the losses of the whole batch.

        Returns:
            0-dim float32 tensors: `loss`, whose gradients, summed over the micro-batches of a rank, are those of the
            whole batch's loss (its value has no meaning); and of `self_distillation` with `teacher_agreement`, and
            `caption`, those of the active objectives, whose sums are those of the whole batch.
        """
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        patches = self._student_patches(batch)
        features = self._student_features(batch, patches)
        embeddings = None if context.contrastive is None else self._embed(batch, features)
        if context.token_share is not None:
            losses["caption"] = context.token_share * self._caption(batch, features, None)
        if (targets := context.teacher) is not None:
            student = self._student_bottleneck(batch, patches, features)
            losses["self_distillation"] = context.clip_share * self._distillation(
                batch,
                student,
                (targets.bottleneck, targets.prototypes),
                teacher_temperature,
                potential=targets.potential,
            )
            agreement = teacher_agreement(student[0], targets.bottleneck, batch.masked)
            metrics["teacher_agreement"] = context.clip_share * agreement
        values = {name: value.detach() for name, value in losses.items()}
        if embeddings is not None and context.contrastive is not None:
            # Linear in the embeddings, so that their gradients are those of `context`.
            audio, text, logit_scale = (
                (own * gradient).sum() for own, gradient in zip(embeddings, context.contrastive, strict=True)
            )
            losses["contrastive"] = audio + text + logit_scale
        return {"loss": self.weighted_sum(losses), **values, **metrics}

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

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The total of the active objectives' losses."""
        weights = self.objectives
        return functools.reduce(
            operator.add, (getattr(weights, f"{name}_weight") * losses[name] for name in weights.active)
        )

    def _has(self, objective: str) -> bool:
        return objective in self.student.objectives

    def _student_patches(self, batch: Batch) -> Tensor:
        """`[T, patch]`, with SpecAugment."""
        return self._patches(batch, time_masked=batch.time_masked, mel_masked=batch.mel_masked)

    def _student_features(self, batch: Batch, patches: Tensor) -> Tensor:
        """`[T, width]` of the first pass; with masked tokens where all objectives share it, or there is one alone."""
        objectives = self.objectives
        masked = objectives.masks_tokens and objectives.student_passes == 1
        return self.student.audio_encoder(patches, batch.tokens, batch.masked_tokens if masked else None)

    def _embed(self, batch: Batch, features: Tensor) -> ContrastiveTensors:
        student = self.student
        text_features = student.text_encoder(batch.input_ids, batch.text)
        logit_scale = student.logit_scale()
        audio = student.audio_pooling(features, batch.tokens)
        text = student.text_pooling(text_features, batch.text)
        return ContrastiveTensors(audio, text, logit_scale)

    def _student_bottleneck(self, batch: Batch, patches: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.objectives.student_passes == 2:
            features = self.student.audio_encoder(patches, batch.tokens, batch.masked_tokens)
        return self.student_head(features[batch.masked_tokens])

    @torch.no_grad()
    def _teacher_bottleneck(self, batch: Batch) -> tuple[Tensor, Tensor]:
        features = self.teacher_encoder(self._patches(batch), batch.tokens)
        return self.teacher_head(features[batch.masked_tokens])

    @torch.no_grad()
    def _patches(self, batch: Batch, **masks: Tensor) -> Tensor:
        return self.student.frontend(batch.waveform, batch.samples, batch.frames, batch.tokens, **masks)

    def _caption(self, batch: Batch, features: Tensor, group: ProcessGroup | None) -> Tensor:
        inputs, targets, layout = _shift_captions(batch)
        return self.student.caption_decoder(
            inputs,
            layout,
            features,
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
