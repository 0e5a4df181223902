"""Evaluation during training: scores a copy of the student on all ranks and keeps the best model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.config.recipe import EvaluationConfig
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.labeled import LabeledSet, open_labeled
from slap_fast.errors import SlapFastError
from slap_fast.evaluation.best_model import BestModel
from slap_fast.evaluation.caption_metrics import caption_metrics
from slap_fast.evaluation.relevance import RelevanceSets, read_relevance, relevance_scores, relevant_clips
from slap_fast.evaluation.retrieval import METRIC_NAMES, embedding_retrieval_metrics
from slap_fast.evaluation.retrieval_evaluation import names_of
from slap_fast.evaluation.zero_shot import class_embeddings, zero_shot_report
from slap_fast.inference.audio_inputs import (
    AudioInput,
    Skipped,
    dataset_inputs,
    describe_nothing_read,
    evenly_spaced,
    labeled_input,
)
from slap_fast.inference.caption import GeneratedCaption, generate_captions
from slap_fast.inference.embed import embed_audio, embed_dataset, embed_texts
from slap_fast.models.slap import SLAP
from slap_fast.training.checkpoint.export import full_weights, standalone_student
from slap_fast.training.distributed.process_group import Ranks
from slap_fast.training.metrics.run_log import EvaluationResult

_ZERO_SHOT_NAMES = ("accuracy_at_1", "accuracy_at_5", "mean_class_accuracy", "map", "auroc")
_FAILURES = (SlapFastError, ValueError, OSError, RuntimeError)


class EvaluationError(SlapFastError, ValueError):
    """The model could not be scored."""


@dataclass
class _Embeddings:
    """Embeddings of one rank, or of all: N clips with M captions, and L clips with class labels."""

    names: list[str]  # N
    audio: Tensor  # [N, D]
    text: Tensor  # [M, D]
    text_to_audio: Tensor  # [M]
    captions: list[str]  # M
    labeled: Tensor  # [L, D]
    labels: list[tuple[int, ...]]  # L
    generated: list[GeneratedCaption]  # of the N clips, if they are captioned
    skipped: list[Skipped]


class InLoopEvaluation:
    """Scores the student in float32, as it would be saved; each rank embeds its share of the clips.

    At any ZeRO stage, every rank makes a temporary copy of the student: the model in training, its engine and the
    random state do not change.

    Args:
        best: folder of the best model.

    Raises:
        DatasetError, LabelError, RelevanceError, OSError: `dataset`, `zero_shot` or `relevance` cannot be used.
    """

    def __init__(self, config: EvaluationConfig, best: Path, ranks: Ranks) -> None:
        self._config = config
        self._device = ranks.device
        self._clips: Sequence[AudioInput] = ()
        self._labeled: Sequence[tuple[AudioInput, tuple[int, ...]]] = ()
        self._set: LabeledSet | None = None
        self._relevance: _Relevance | None = None
        if config.dataset is not None:
            clips = dataset_inputs(ClipIndex.open(config.dataset), config.limit)
            self._clips = clips[ranks.rank :: ranks.world_size]
            if config.relevance is not None and ranks.is_first:
                self._relevance = _Relevance.read(Path(config.relevance), clips)
        if config.zero_shot is not None:
            self._set = open_labeled(config.zero_shot).scored()
            files = self._set.files
            chosen = evenly_spaced(len(files), config.limit or len(files))[ranks.rank :: ranks.world_size]
            self._labeled = [(labeled_input(files[at]), files[at].labels) for at in chosen]
        chosen_by = dataclasses.asdict(config)
        del chosen_by["every"]
        self._best = BestModel(best, chosen_by) if ranks.is_first else None
        self._skipped = 0

    def resume(self, step: int) -> tuple[str, ...]:
        """Restore the best score of a run that continues after `step`; returns notes for the log."""
        note = None if self._best is None or not self.enabled else self._best.resume(step)
        return () if note is None else (note,)

    @property
    def enabled(self) -> bool:
        return self._config.enabled

    def due(self, step: int) -> bool:
        """Whether the model is scored after `step`."""
        return self.enabled and step % self._config.every == 0

    def run(self, engine: Any, step: int) -> EvaluationResult:
        """Score the student and keep it if it is the best so far. A collective call.

        A failure becomes a note in the result; training goes on.
        """
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            model = _copy_of_student(engine)
            own: _Embeddings | str
            try:
                own = self._embed(model.to(self._device).eval())
            except _FAILURES as error:
                own = f"{type(error).__name__}: {error}"
            gathered: list[Any] | None = [None] * dist.get_world_size() if self._best is not None else None
            dist.gather_object(own, gathered, dst=0)
            if self._best is None or gathered is None:
                return EvaluationResult()
            try:
                return self._score_and_keep(model, engine.module.student.tokenizer, step, gathered, self._best)
            except _FAILURES as error:
                return EvaluationResult(notes=(f"the evaluation after step {step} failed: {error}; training goes on",))

    def _embed(self, model: SLAP) -> _Embeddings:
        skipped: list[Skipped] = []
        generated = list(generate_captions(model, self._clips, skipped)) if self._config.captions else []
        if model.text_encoder is None:  # trained to caption, without the contrastive objective
            none, no_index = torch.empty(0, model.embedding_dim), torch.empty(0, dtype=torch.int64)
            return _Embeddings([], none, none, no_index, [], none, [], generated, skipped)
        retrieval = embed_dataset(model, self._clips, allow_empty=True)
        labeled = embed_audio(model, [clip for clip, _ in self._labeled], allow_empty=True)
        labels_of = {clip.name: labels for clip, labels in self._labeled}
        return _Embeddings(
            [clip.name for clip in retrieval.clips],
            retrieval.audio,
            retrieval.text,
            retrieval.text_to_audio,
            retrieval.captions,
            labeled.embeddings,
            [labels_of[clip.name] for clip in labeled.inputs],
            generated,
            retrieval.skipped + labeled.skipped,
        )

    def _score_and_keep(
        self, model: SLAP, tokenizer: Any, step: int, gathered: Sequence[_Embeddings | str], best: BestModel
    ) -> EvaluationResult:
        for rank, embeddings in enumerate(gathered):
            if isinstance(embeddings, str):
                raise EvaluationError(f"rank {rank}: {embeddings}")
        whole = _concatenate([embeddings for embeddings in gathered if isinstance(embeddings, _Embeddings)])
        scores = self._scores(model, whole)
        score = scores["score"]
        notes = []
        if len(whole.skipped) > self._skipped:
            self._skipped = len(whole.skipped)
            first = whole.skipped[0]
            notes.append(f"{self._skipped} clips left out of evaluation; the first: {first.name}: {first.reason}")
        # Encoding has changed the truncation settings of the copy's tokenizer.
        model.tokenizer = tokenizer
        try:
            kept = best.offer(model, step, score, scores)
            comparison = "the best so far" if kept else f"best {best.score:.4f} after step {best.step}"
        except (OSError, RuntimeError) as error:
            comparison = f"the best so far, but cannot be saved: {error}"
        notes.append(f"step {step}: {self._config.metric} {score:.4f}, {comparison}")
        return EvaluationResult(scores, tuple(notes))

    def _scores(self, model: SLAP, whole: _Embeddings) -> dict[str, float]:
        scores: dict[str, float] = {}
        metric = self._config.metric
        if self._config.captions:
            if not whole.generated:
                raise EvaluationError(f"{self._config.dataset}: {describe_nothing_read(whole.skipped)}")
            texts, references = zip(*((one.caption, one.references) for one in whole.generated), strict=True)
            captions = caption_metrics(texts, references, external=False)
            if metric in captions.unavailable:
                raise EvaluationError(f"{metric}: {captions.unavailable[metric]}")
            scores |= captions.scores
        if self._config.dataset is not None and model.text_encoder is not None:
            if not len(whole.text):
                raise EvaluationError(f"{self._config.dataset}: {describe_nothing_read(whole.skipped)}")
            retrieval = embedding_retrieval_metrics(whole.audio, whole.text, whole.text_to_audio, whole.captions)
            scores |= {f"{way}_{name}": retrieval[f"{way}_{name}"] for way in ("t2a", "a2t") for name in METRIC_NAMES}
        if self._relevance is not None:
            scores["t2a_map16"] = self._relevance.score(model, whole)
        if self._set is not None:
            if not len(whole.labeled):
                raise EvaluationError(f"{self._config.zero_shot}: {describe_nothing_read(whole.skipped)}")
            classes = class_embeddings(model, self._set.classes)
            zero_shot = zero_shot_report(whole.labeled, classes, whole.labels, self._set, resamples=0)
            scores |= {f"zero_shot_{name}": zero_shot[name] for name in _ZERO_SHOT_NAMES if name in zero_shot}
        ways: tuple[str, ...]
        if metric == "zero_shot":
            ways = tuple(name for name in ("zero_shot_accuracy_at_1", "zero_shot_map") if name in scores)
        else:
            single = {"map16": "t2a_map16", "cider_d": "cider_d"}
            ways = (single[metric],) if metric in single else (f"t2a_{metric}", f"a2t_{metric}")
        return scores | {"score": sum(scores[way] for way in ways) / len(ways)}


@dataclass(frozen=True)
class _Relevance:
    """Relevance sets about all clips of the dataset."""

    sets: RelevanceSets
    relevant: Tensor  # [Q, N] bool
    position: dict[str, int]  # of a clip among the N, by name

    @classmethod
    def read(cls, path: Path, clips: Sequence[AudioInput]) -> _Relevance:
        sets = read_relevance(path)
        relevant = relevant_clips(sets, [names_of(clip) for clip in clips])
        return cls(sets, relevant, {clip.name: at for at, clip in enumerate(clips)})

    def score(self, model: SLAP, whole: _Embeddings) -> float:
        queries = embed_texts(model, self.sets.queries)
        read = [self.position[name] for name in whole.names]
        return relevance_scores(whole.audio, queries, self.relevant, read).metrics()["t2a_map16"]


def _copy_of_student(engine: Any) -> SLAP:
    """The whole student in float32 on the CPU of every rank. A collective call."""
    student = engine.module.student
    model = standalone_student(student, full_weights(engine, student, on_all_ranks=True))
    model.tokenizer = copy.deepcopy(student.tokenizer)
    return model


def _concatenate(parts: Sequence[_Embeddings]) -> _Embeddings:
    first_clips = torch.tensor([0, *(len(part.audio) for part in parts)]).cumsum(0)
    targets = [part.text_to_audio + first for part, first in zip(parts, first_clips, strict=False)]
    return _Embeddings(
        names=[name for part in parts for name in part.names],
        audio=torch.cat([part.audio for part in parts]),
        text=torch.cat([part.text for part in parts]),
        text_to_audio=torch.cat(targets),
        captions=[caption for part in parts for caption in part.captions],
        labeled=torch.cat([part.labeled for part in parts]),
        labels=[labels for part in parts for labels in part.labels],
        generated=[caption for part in parts for caption in part.generated],
        skipped=[clip for part in parts for clip in part.skipped],
    )
