"""Scores of a model while it trains; nothing of the training changes by them."""

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

from slap_fast.audio.files import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.config.recipe import EvaluationConfig
from slap_fast.data.format.index import ClipIndex, DatasetError
from slap_fast.evaluation.best_model import BestModel
from slap_fast.evaluation.retrieval import METRIC_NAMES, embedding_retrieval_metrics
from slap_fast.evaluation.zero_shot import class_embeddings, labelled_files, zero_shot_metrics
from slap_fast.inference.embed import (
    AudioInput,
    EvaluationError,
    Skipped,
    dataset_inputs,
    describe_nothing_read,
    embed_clips,
    embed_readable,
    evenly,
    file_input,
)
from slap_fast.models.slap import SLAP
from slap_fast.training.checkpoint.export import full_weights, model_like
from slap_fast.training.distributed.process_group import Ranks
from slap_fast.training.metrics.run_log import Evaluated

_ZERO_SHOT_NAMES = ("accuracy_at_1", "accuracy_at_5", "mean_class_accuracy")


@dataclass
class _Share:
    """What one rank has embedded: N clips with M captions, and L clips with classes."""

    audio: Tensor  # [N, D]
    text: Tensor  # [M, D]
    text_to_audio: Tensor  # [M]
    captions: list[str]  # M
    labelled: Tensor  # [L, D]
    labels: Tensor  # [L]
    skipped: list[Skipped]


class InLoopEvaluation:
    """Scores the student in float32, as it would be saved, on all ranks: each embeds its share of the clips.

    Every rank makes a copy of the student for the time of an evaluation, at any ZeRO stage, so that the model in
    training, its engine and the random state are left as they are.

    Args:
        best: folder for the best model.

    Raises:
        DatasetError, LabelError, OSError: `config.dataset` or `config.zero_shot` cannot be used.
    """

    def __init__(self, config: EvaluationConfig, best: Path, ranks: Ranks) -> None:
        self._config = config
        self._device = ranks.device
        self._clips: Sequence[AudioInput] = ()
        self._labelled: Sequence[tuple[AudioInput, int]] = ()
        self._classes: Sequence[str] = ()
        if config.dataset is not None:
            clips = dataset_inputs(ClipIndex.open(config.dataset), config.limit)
            self._clips = clips[ranks.rank :: ranks.world_size]
        if config.zero_shot is not None:
            extensions = AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS
            files, self._classes = labelled_files(config.zero_shot, extensions=extensions)
            chosen = evenly(len(files), config.limit or len(files))[ranks.rank :: ranks.world_size]
            self._labelled = [(file_input(files[at][0]), files[at][1]) for at in chosen]
        chosen_by = dataclasses.asdict(config)
        del chosen_by["every"]
        self._best = BestModel(best, chosen_by) if ranks.is_first else None
        self._skipped = 0

    def resume(self, step: int) -> tuple[str, ...]:
        """Take up the best model of a run that continues after `step`; what there is to say about it."""
        note = None if self._best is None or not self.enabled else self._best.resume(step)
        return () if note is None else (note,)

    @property
    def enabled(self) -> bool:
        return self._config.enabled

    def due(self, step: int) -> bool:
        """Whether the model is to be scored after `step`."""
        return self.enabled and step % self._config.every == 0

    def run(self, engine: Any, step: int) -> Evaluated:
        """Score the student and keep it if it is the best. A collective call.

        What goes wrong is told and ends no run.
        """
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            model = _copy_of_student(engine)
            share: _Share | str
            try:
                share = self._embed(model.to(self._device).eval())
            except (ValueError, OSError, RuntimeError, DatasetError) as error:
                share = f"{type(error).__name__}: {error}"
            shares: list[Any] | None = [None] * dist.get_world_size() if self._best is not None else None
            dist.gather_object(share, shares, dst=0)
            if self._best is None or shares is None:
                return Evaluated()
            try:
                return self._judge(model, engine.module.student.tokenizer, step, shares, self._best)
            except (ValueError, OSError, RuntimeError) as error:
                return Evaluated(notes=(f"the evaluation after step {step} failed: {error}; training goes on",))

    def _embed(self, model: SLAP) -> _Share:
        retrieval = embed_clips(model, self._clips)
        labelled = embed_readable(model, [clip for clip, _ in self._labelled])
        label_of = {clip.name: label for clip, label in self._labelled}
        return _Share(
            retrieval.audio,
            retrieval.text,
            retrieval.text_to_audio,
            retrieval.captions,
            labelled.embeddings,
            torch.tensor([label_of[clip.name] for clip in labelled.inputs], dtype=torch.int64),
            retrieval.skipped + labelled.skipped,
        )

    def _judge(
        self, model: SLAP, tokenizer: Any, step: int, shares: Sequence[_Share | str], best: BestModel
    ) -> Evaluated:
        for rank, share in enumerate(shares):
            if isinstance(share, str):
                raise EvaluationError(f"rank {rank}: {share}")
        whole = _together([share for share in shares if isinstance(share, _Share)])
        scores = self._scores(model, whole)
        score = scores["score"]
        notes = []
        if len(whole.skipped) > self._skipped:
            self._skipped = len(whole.skipped)
            first = whole.skipped[0]
            notes.append(f"{self._skipped} clips left out of evaluation; the first: {first.name}: {first.reason}")
        # The copy's truncation settings have changed with its use.
        model.tokenizer = tokenizer
        try:
            kept = best.offer(model, step, score, scores)
            comparison = "the best so far" if kept else f"best {best.score:.4f} after step {best.step}"
        except (OSError, RuntimeError) as error:
            comparison = f"the best so far, but cannot be saved: {error}"
        notes.append(f"step {step}: {self._config.metric} {score:.4f}, {comparison}")
        return Evaluated(scores, tuple(notes))

    def _scores(self, model: SLAP, whole: _Share) -> dict[str, float]:
        scores: dict[str, float] = {}
        metric = self._config.metric
        if self._config.dataset is not None:
            if not len(whole.text):
                raise EvaluationError(f"{self._config.dataset}: {describe_nothing_read(whole.skipped)}")
            retrieval = embedding_retrieval_metrics(whole.audio, whole.text, whole.text_to_audio, whole.captions)
            scores |= {f"{way}_{name}": retrieval[f"{way}_{name}"] for way in ("t2a", "a2t") for name in METRIC_NAMES}
        if self._config.zero_shot is not None:
            if not len(whole.labelled):
                raise EvaluationError(f"{self._config.zero_shot}: {describe_nothing_read(whole.skipped)}")
            zero_shot = zero_shot_metrics(whole.labelled, class_embeddings(model, self._classes), whole.labels)
            scores |= {f"zero_shot_{name}": zero_shot[name] for name in _ZERO_SHOT_NAMES}
        ways = ("zero_shot_accuracy_at_1",) if metric == "zero_shot" else (f"t2a_{metric}", f"a2t_{metric}")
        return scores | {"score": sum(scores[way] for way in ways) / len(ways)}


def _copy_of_student(engine: Any) -> SLAP:
    """The whole student in float32 on the CPU of every rank. A collective call."""
    student = engine.module.student
    model = model_like(student, full_weights(engine, student, on_all_ranks=True))
    model.tokenizer = copy.deepcopy(student.tokenizer)
    return model


def _together(shares: Sequence[_Share]) -> _Share:
    first_clips = torch.tensor([0, *(len(share.audio) for share in shares)]).cumsum(0)
    targets = [share.text_to_audio + first for share, first in zip(shares, first_clips, strict=False)]
    return _Share(
        audio=torch.cat([share.audio for share in shares]),
        text=torch.cat([share.text for share in shares]),
        text_to_audio=torch.cat(targets),
        captions=[caption for share in shares for caption in share.captions],
        labelled=torch.cat([share.labelled for share in shares]),
        labels=torch.cat([share.labels for share in shares]),
        skipped=[clip for share in shares for clip in share.skipped],
    )
