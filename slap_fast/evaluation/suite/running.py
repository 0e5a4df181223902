"""Runs the tasks of a suite on the datasets that are there; one that fails is named, and the others still run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slap_fast.data.format.index import ClipIndex
from slap_fast.data.labeled import LabeledSet, open_labeled
from slap_fast.data.prepare.source_detection import open_source
from slap_fast.errors import SlapFastError, one_line
from slap_fast.evaluation.bootstrap import RESAMPLES
from slap_fast.evaluation.captioning import evaluate_captions
from slap_fast.evaluation.prompts import PROMPT_SETS, PromptSet
from slap_fast.evaluation.retrieval_evaluation import evaluate_retrieval
from slap_fast.evaluation.suite.discovery import FoundDataset
from slap_fast.evaluation.suite.paper import SUITES, Task
from slap_fast.evaluation.zero_shot import evaluate_zero_shot
from slap_fast.inference.audio_inputs import AudioInput, Skipped, dataset_inputs, evenly_spaced, source_inputs
from slap_fast.models.slap import SLAP

_FAILURES = (SlapFastError, ValueError, OSError)


@dataclass
class SuiteResult:
    """Results of a suite.

    Attributes:
        suite: its name.
        results: by task: `paths`, `zero_shot` or `retrieval` and `captioning` (as in metrics.json), `other_copies`.
        missing: by task: where to get the dataset.
        failed: by task: why its dataset could not be scored.
        skipped: clips that could not be read.
        clips: clips that should have been read.
    """

    suite: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    clips: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "results": self.results,
            "missing": self.missing,
            "failed": self.failed,
            "skipped": [{"name": clip.name, "reason": clip.reason} for clip in self.skipped],
        }


def run_suite(
    model: SLAP,
    suite: str,
    datasets: Mapping[str, FoundDataset],
    *,
    prompts: PromptSet | None = None,
    limit: int | None = None,
    resamples: int = RESAMPLES,
    progress: bool = False,
    announce: Callable[[str], None] = lambda title: None,
) -> SuiteResult:
    """Score a model on the datasets of a suite.

    Args:
        suite: a key of SUITES.
        datasets: what `find_datasets` finds below a folder.
        prompts: for all classification tasks; None: those of each task.
        limit: use only this many clips of each dataset, evenly spaced.
        resamples: bootstrap samples for 95 % intervals; 0: none.
        announce: called with the title of each task before it runs.
    """
    result = SuiteResult(suite)
    for task in SUITES[suite]:
        dataset = datasets.get(task.name)
        if dataset is None:
            result.missing[task.name] = task.source
            continue
        announce(f"{task.title}: {', '.join(map(str, dataset.paths[:2]))}{', ...' if len(dataset.paths) > 2 else ''}")
        try:
            run = _classify if task.kind == "labeled" else _retrieve
            scores = run(model, task, dataset, prompts, limit, resamples, progress, result)
        except _FAILURES as error:
            result.failed[task.name] = one_line(error, 400)
            continue
        result.results[task.name] = {
            "paths": [str(path) for path in dataset.paths],
            "other_copies": [str(path) for path in dataset.others],
            **scores,
        }
    return result


def _classify(
    model: SLAP,
    task: Task,
    dataset: FoundDataset,
    prompts: PromptSet | None,
    limit: int | None,
    resamples: int,
    progress: bool,
    result: SuiteResult,
) -> dict[str, Any]:
    labeled = _merged([open_labeled(path) for path in dataset.paths])
    prompts = prompts or PROMPT_SETS[task.prompts]
    scored = evaluate_zero_shot(model, labeled, prompts, limit=limit, resamples=resamples, progress=progress)
    result.skipped += scored.skipped
    result.clips += scored.clips
    return {"zero_shot": scored.report}


def _merged(parts: Sequence[LabeledSet]) -> LabeledSet:
    """The clips of several folders of one dataset, each file name once: some copies have a second tree of the files."""
    files = {file.path.name: file for part in reversed(parts) for file in reversed(part.files)}
    left_out = [item for part in parts for item in part.left_out]
    return parts[0] if len(parts) == 1 else replace(parts[0], files=list(files.values())[::-1], left_out=left_out)


def _retrieve(
    model: SLAP,
    task: Task,
    dataset: FoundDataset,
    prompts: PromptSet | None,
    limit: int | None,
    resamples: int,
    progress: bool,
    result: SuiteResult,
) -> dict[str, Any]:
    clips = _captioned(dataset)
    if limit is not None:
        clips = [clips[at] for at in evenly_spaced(len(clips), limit)]
    count = len(clips)
    skipped: list[Skipped] = []
    scores: dict[str, Any] = {}
    if model.text_encoder is None and model.caption_decoder is not None:
        scores["retrieval_unavailable"] = "the model has no text tower: it was trained to caption only"
    else:
        retrieval = evaluate_retrieval(model, clips, resamples=resamples, progress=progress)
        scores["retrieval"] = retrieval.metrics
        clips, skipped = retrieval.embedded.clips, retrieval.embedded.skipped
    if model.caption_decoder is None:
        scores["captioning_unavailable"] = "the model has no caption decoder: it was trained without captions"
    else:
        captions = evaluate_captions(model, clips, resamples=resamples, progress=progress)
        scores["captioning"] = captions.report
        skipped = skipped + captions.skipped
    result.skipped += skipped
    result.clips += count
    return scores


def _captioned(dataset: FoundDataset) -> list[AudioInput]:
    if dataset.prepared:
        return dataset_inputs(ClipIndex.open(dataset.paths[0]))
    return source_inputs(open_source(dataset.paths[0]))
