"""`slap-fast evaluate`: retrieval on a prepared dataset, zero-shot classification, suites, and plots."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.caption import add_decoding_arguments
from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_precision,
    add_quiet,
    beside_model,
    errors_about,
    load_model,
    positive,
    report_skipped,
    show_progress,
)
from slap_fast.config.saved_files import weights_digest
from slap_fast.errors import ModelError, SlapFastError, one_line

if TYPE_CHECKING:
    from slap_fast.data.format.index import ClipIndex
    from slap_fast.data.labeled import LabeledSet
    from slap_fast.evaluation.prompts import PromptSet
    from slap_fast.evaluation.relevance import RelevanceSets
    from slap_fast.evaluation.suite import FoundDataset
    from slap_fast.inference.audio_inputs import AudioInput, Skipped
    from slap_fast.inference.embed import EmbeddedDataset
    from slap_fast.models.slap import SLAP

HELP = "measure retrieval or zero-shot classification, run a suite of benchmarks, and draw plots"
MATRIX_CLIPS = 60
LOCALIZATION_CANDIDATES = 200
SUITES = ("paper",)
RESAMPLES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_precision(parser)
    parser.add_argument(
        "dataset", metavar="DATASET", type=Path, nargs="?", help="folder that `slap-fast prepare` wrote"
    )
    parser.add_argument("--out", type=Path, help="folder for metrics.json and the plots (default: MODEL/../evaluation)")
    parser.add_argument(
        "--log", type=Path, help="log.jsonl of the run to plot (default: MODEL/../log.jsonl if it is there)"
    )
    parser.add_argument("--limit", type=positive, help="number of clips, evenly spaced (default: all)")
    parser.add_argument(  # the second spelling was the only one until 0.1.0
        "--localize", "--localise", type=int, default=3, metavar="N", help="clips to plot over time (default 3)"
    )
    parser.add_argument(
        "--query", action="append", help="text to compare with them (default: their own events or captions)"
    )
    parser.add_argument(
        "--events",
        action="store_true",
        help="also score where events are located, against their times in the metadata of the DATASET",
    )
    parser.add_argument(
        "--captions", action="store_true", help="also score captions of the DATASET, and write them to captions.jsonl"
    )
    add_decoding_arguments(parser)
    parser.add_argument(
        "--zero-shot",
        type=Path,
        metavar="FOLDER|TABLE",
        help="classify: a folder per class, a table of files and classes, or a public dataset (ESC-50, FSD50K, ...)",
    )
    parser.add_argument("--split", help="of the --zero-shot clips (default: the test split, if there is one)")
    parser.add_argument("--templates", nargs="+", metavar="TEMPLATE", help="prompts with {} for the class name")
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="NAME|FILE",
        help="prompt sets, whose mean is used: default, labels, clap, msclap, emotion, music, or a file of templates",
    )
    parser.add_argument(
        "--relevance",
        type=Path,
        metavar="FILE",
        help="table of query and audio_filenames (DCASE 2025): also score mAP@16 with several relevant clips a query",
    )
    parser.add_argument(
        "--suite", choices=SUITES, help="score all public benchmarks of the paper that are below --data"
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder of the datasets of --suite")
    parser.add_argument(
        "--bootstrap",
        type=_not_negative,
        default=RESAMPLES,
        metavar="N",
        help=f"resamples for 95 %% intervals, 0 for none (default {RESAMPLES})",
    )
    parser.add_argument("--no-plots", action="store_true", help="numbers only")
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of tables")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    log = _find_log(arguments)
    if not arguments.no_plots:
        _require_matplotlib()
    # Errors in the data are reported before the model is loaded.
    index = labeled = relevance = prompts = datasets = None
    if arguments.dataset is not None:
        from slap_fast.data.format.index import ClipIndex

        index = ClipIndex.open(arguments.dataset)
    if arguments.zero_shot is not None:
        from slap_fast.data.labeled import open_labeled

        labeled = open_labeled(arguments.zero_shot)
    if arguments.relevance is not None:
        from slap_fast.evaluation.relevance import read_relevance

        relevance = read_relevance(arguments.relevance)
    if arguments.prompts or arguments.templates:
        prompts = _prompts(arguments)
    if labeled is not None:
        labeled.scored(arguments.split)
        if prompts is not None:
            prompts.check_classes(labeled.classes)
    if arguments.suite is not None:
        datasets = _find_datasets(arguments.suite, arguments.data)
    evaluation = _Evaluation(load_model(arguments.model, arguments.device, arguments.precision), arguments)
    if index is not None:
        evaluation.retrieval(index, relevance)
        if arguments.events:
            evaluation.events(index)
    if labeled is not None:
        evaluation.zero_shot(labeled, prompts)
    if datasets is not None:
        evaluation.suite(datasets, prompts)
    if log is not None and not arguments.no_plots:
        evaluation.plot_training_log(log)
    return evaluation.finish()


def _check(arguments: argparse.Namespace) -> None:
    if arguments.dataset is None and arguments.zero_shot is None and arguments.suite is None:
        raise CommandError("give a DATASET, --zero-shot FOLDER, --suite paper --data ROOT, or several of them")
    if (arguments.suite is None) != (arguments.data is None):
        raise CommandError("--suite paper and --data ROOT, the folder of its datasets, go together")
    if arguments.data is not None and not arguments.data.is_dir():
        raise CommandError(f"--data {arguments.data}: no such folder; give the folder that holds the datasets")
    if arguments.split is not None and arguments.zero_shot is None:
        raise CommandError("--split is of the clips of --zero-shot; give both, or leave it out")
    if arguments.prompts and arguments.templates:
        raise CommandError("--prompts and --templates exclude each other; put the templates into a file")
    if (arguments.prompts or arguments.templates) and arguments.zero_shot is None and arguments.suite is None:
        raise CommandError("--prompts and --templates are for --zero-shot and --suite; give one of these, too")
    if arguments.captions and arguments.dataset is None:
        raise CommandError("--captions captions the clips of a DATASET; give one")
    if arguments.events and arguments.dataset is None:
        raise CommandError("--events locates the events of the clips of a DATASET; give one")
    if (arguments.beams, arguments.max_length) != (1, 64) and not arguments.captions:
        raise CommandError("--beams and --max-length are for --captions; give it, too")
    if arguments.relevance is not None and arguments.dataset is None:
        raise CommandError("--relevance judges the clips of a DATASET; give one")
    if arguments.relevance is not None and arguments.limit is not None:
        raise CommandError("--relevance needs all clips of the DATASET; leave --limit out")


def _find_datasets(suite: str, root: Path) -> dict[str, FoundDataset]:
    from slap_fast.evaluation.suite.discovery import find_datasets
    from slap_fast.evaluation.suite.paper import SUITES as TASKS

    datasets = find_datasets(root)
    if not any(task.name in datasets for task in TASKS[suite]):
        wanted = "; ".join(f"{task.title} ({task.source})" for task in TASKS[suite])
        raise CommandError(f"{root}: none of the datasets of the suite is there, up to 4 folders deep: {wanted}")
    return datasets


def _prompts(arguments: argparse.Namespace) -> PromptSet:
    from slap_fast.evaluation.prompts import PromptSet, open_prompts

    if arguments.templates:
        return PromptSet("templates", tuple(arguments.templates), "--templates")
    return open_prompts(arguments.prompts)


def _not_negative(text: str) -> int:
    if text.strip() == "0":
        return 0
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor a positive whole number") from error


class _Evaluation:
    """Runs the evaluations that the arguments ask for, and collects metrics, skipped clips and written files."""

    def __init__(self, model: SLAP, arguments: argparse.Namespace) -> None:
        if arguments.captions:
            model.require("caption_decoder")
        self._model = model
        self._arguments = arguments
        self._out: Path = arguments.out or beside_model(arguments.model, "evaluation")
        self._identity = {"model": str(arguments.model), "weights": weights_digest(arguments.model)}
        if arguments.precision != "fp32":
            self._identity["precision"] = arguments.precision
        self._report: dict[str, Any] = dict(self._identity)
        self._clips = 0
        self._skipped: list[Skipped] = []
        self._written: list[Path] = []
        self._suite: str | None = None
        self._failed = False
        self._out.mkdir(parents=True, exist_ok=True)

    def retrieval(self, index: ClipIndex, relevance: RelevanceSets | None) -> None:
        from slap_fast.evaluation.retrieval_evaluation import evaluate_retrieval
        from slap_fast.inference.audio_inputs import dataset_inputs

        arguments = self._arguments
        clips = dataset_inputs(index, arguments.limit)
        self._clips += len(clips)
        if arguments.captions:
            try:
                self._model.require("text_encoder")
            except ModelError as error:
                print(f"slap-fast: retrieval is left out: {error}", file=sys.stderr)
                self._report |= {"dataset": str(arguments.dataset), "retrieval_unavailable": str(error)}
                return self.captions(clips)
        try:
            result = evaluate_retrieval(
                self._model,
                clips,
                relevance=relevance,
                resamples=arguments.bootstrap,
                progress=show_progress(arguments),
            )
        except SlapFastError:
            raise
        except ValueError as error:
            raise CommandError(f"{arguments.model}: {one_line(error, 400)}") from error
        dataset = result.embedded
        self._report |= {"dataset": str(arguments.dataset), "retrieval": result.metrics}
        if result.relevance is not None:
            self._report["relevance"] = {"source": str(arguments.relevance), **result.relevance}
        self._skipped += dataset.skipped
        if not arguments.no_plots:
            self._plot_similarity(dataset)
            self._plot_localization(dataset.clips)
        if arguments.captions:
            self.captions(dataset.clips)

    def events(self, index: ClipIndex) -> None:
        from slap_fast.evaluation.localization_scores import score_localization
        from slap_fast.inference.audio_inputs import dataset_inputs

        arguments = self._arguments
        scores, skipped = score_localization(
            self._model,
            dataset_inputs(index, arguments.limit),
            resamples=arguments.bootstrap,
            progress=show_progress(arguments),
        )
        self._report["localization"] = scores.to_json()
        known = {clip.name for clip in self._skipped}  # of retrieval, which reads the same clips
        self._skipped += [clip for clip in skipped if clip.name not in known]

    def captions(self, clips: list[AudioInput]) -> None:
        from slap_fast.evaluation.captioning import evaluate_captions
        from slap_fast.runtime.durable_files import replace_file

        arguments = self._arguments
        result = evaluate_captions(
            self._model,
            clips,
            beam_size=arguments.beams,
            max_length=arguments.max_length,
            resamples=arguments.bootstrap,
            progress=show_progress(arguments),
        )
        lines = "".join(caption.to_json() + "\n" for caption in result.captions)
        replace_file(self._new_file("captions.jsonl"), [lines.encode("utf-8")])
        decoding = {"beams": arguments.beams, "max_length": arguments.max_length}
        self._report["captioning"] = {**result.report, "decoding": decoding}
        self._skipped += result.skipped

    def zero_shot(self, labeled: LabeledSet, prompts: PromptSet | None) -> None:
        from slap_fast.evaluation.zero_shot import evaluate_zero_shot

        arguments = self._arguments
        result = evaluate_zero_shot(
            self._model,
            labeled,
            prompts,
            split=arguments.split,
            limit=arguments.limit,
            resamples=arguments.bootstrap,
            progress=show_progress(arguments),
        )
        self._report["zero_shot"] = {"source": str(arguments.zero_shot), **result.report}
        self._clips += result.clips
        self._skipped += result.skipped

    def suite(self, datasets: dict[str, FoundDataset], prompts: PromptSet | None) -> None:
        from slap_fast.evaluation.plots import ScoreBar, plot_scores
        from slap_fast.evaluation.suite import run_suite
        from slap_fast.evaluation.suite.report import format_suite, markdown_suite, suite_rows
        from slap_fast.runtime.durable_files import replace_file

        arguments = self._arguments
        result = run_suite(
            self._model,
            arguments.suite,
            datasets,
            prompts=prompts,
            limit=arguments.limit,
            resamples=arguments.bootstrap,
            progress=show_progress(arguments),
            announce=lambda title: None if arguments.quiet else print(title, file=sys.stderr),
        )
        report = {**self._identity, "limit": arguments.limit, **result.to_json()}
        text = json.dumps(report, indent=2, ensure_ascii=False)
        replace_file(self._new_file("suite.json"), [(text + "\n").encode("utf-8")])
        replace_file(self._new_file("suite.md"), [markdown_suite(result, str(arguments.model)).encode("utf-8")])
        rows = suite_rows(result)
        if rows and not arguments.no_plots:
            bars = [
                ScoreBar(f"{row.dataset}: {row.score}", row.value, row.interval, row.published.value) for row in rows
            ]
            title = f"Suite {arguments.suite}: {arguments.model}"
            plot_scores(bars, self._new_file("suite.png"), title=title, unit="score (%)", reference="paper")
        self._suite = format_suite(result)
        self._report["suite"] = {"name": arguments.suite, "data": str(arguments.data), **result.to_json()}
        self._clips += result.clips
        self._skipped += result.skipped
        self._failed = bool(result.failed) or not result.results

    def plot_training_log(self, log: Path) -> None:
        from slap_fast.evaluation.plots import plot_losses

        with errors_about(log):
            plot_losses(log, self._new_file("losses.png"))

    def finish(self) -> int:
        """Write metrics.json, print the results and return the exit code."""
        self._report["skipped"] = [{"name": clip.name, "reason": clip.reason} for clip in self._skipped]
        text = json.dumps(self._report, indent=2, ensure_ascii=False)
        path = self._out / "metrics.json"
        path.write_text(text + "\n", encoding="utf-8")
        print(text if self._arguments.json else _tables(self._report, self._suite, [path, *self._written]))
        return report_skipped(self._skipped, self._clips) or int(self._failed)

    def _new_file(self, name: str) -> Path:
        self._written.append(self._out / name)
        return self._written[-1]

    def _plot_similarity(self, dataset: EmbeddedDataset) -> None:
        from slap_fast.evaluation.plots import plot_similarity
        from slap_fast.inference.audio_inputs import evenly_spaced

        first = dataset.first_captions()
        shown = first[evenly_spaced(len(first), MATRIX_CLIPS)]
        similarity = dataset.audio[dataset.text_to_audio[shown]] @ dataset.text[shown].T
        captions = [dataset.captions[text] for text in shown.tolist()]
        plot_similarity(similarity.numpy(), captions, self._new_file("similarity.png"))

    def _plot_localization(self, clips: list[AudioInput]) -> None:
        from slap_fast.evaluation.localization import events_of, localize, mel_frames
        from slap_fast.evaluation.plots import plot_localization

        mel = self._model.config.mel
        for number, clip in enumerate(_clips_to_localize(clips, self._arguments.localize)):
            metadata = clip.metadata()
            events = events_of(metadata)
            own_events = list(dict.fromkeys(event.text for event in events))
            queries = self._arguments.query or own_events or metadata["captions"][:1]
            waveform = clip.read(mel.sample_rate)
            plot_localization(
                mel_frames(waveform, mel),
                localize(self._model, waveform, queries),
                self._new_file(f"localization{f'-{number + 1}' if number else ''}.png"),
                mel_config=mel,
                title=metadata["captions"][0],
                events=events,
            )


def _find_log(arguments: argparse.Namespace) -> Path | None:
    if arguments.log is not None:
        if not arguments.log.is_file():
            raise CommandError(f"{arguments.log}: no such log; training writes it as <output>/log.jsonl")
        return arguments.log
    default = beside_model(arguments.model, "log.jsonl")
    return default if default.is_file() else None


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise CommandError("plots need matplotlib: pip install matplotlib, or pass --no-plots")


def _clips_to_localize(clips: list[AudioInput], limit: int) -> list[AudioInput]:
    """Evenly spaced clips; only those with several annotated events, if there are any."""
    from slap_fast.evaluation.localization import events_of
    from slap_fast.inference.audio_inputs import evenly_spaced

    candidates = [clips[at] for at in evenly_spaced(len(clips), LOCALIZATION_CANDIDATES)]
    eventful = [clip for clip in candidates if len({event.text for event in events_of(clip.metadata())}) > 1]
    candidates = eventful or candidates
    return [candidates[at] for at in evenly_spaced(len(candidates), limit)]


def _tables(report: dict[str, Any], suite: str | None, written: list[Path]) -> str:
    from slap_fast.evaluation.captioning import format_captioning
    from slap_fast.evaluation.localization_scores import format_localization
    from slap_fast.evaluation.relevance import format_relevance
    from slap_fast.evaluation.retrieval import format_retrieval
    from slap_fast.evaluation.zero_shot import format_zero_shot

    lines = []
    if (retrieval := report.get("retrieval")) is not None:
        shared = int(retrieval["shared_captions"])
        note = f" ({shared} of a text that other clips have too; it counts for each of them)" if shared else ""
        counts = f"{retrieval['clips']:.0f} clips, {retrieval['captions']:.0f} captions{note}"
        lines += [counts, format_retrieval(retrieval, retrieval.get("intervals"))]
    if (relevance := report.get("relevance")) is not None:
        lines.append(f"{relevance['queries']:.0f} queries, {relevance['relevant_pairs']:.0f} relevant pairs")
        lines.append(format_relevance(relevance, relevance.get("intervals")))
    if (captioning := report.get("captioning")) is not None:
        lines.append(format_captioning(captioning))
    if (localization := report.get("localization")) is not None:
        lines.append(format_localization(localization))
    if (zero_shot := report.get("zero_shot")) is not None:
        lines.append(format_zero_shot(zero_shot))
    if suite is not None:
        lines.append(suite)
    return "\n".join([*lines, *(f"wrote {path}" for path in written)])
