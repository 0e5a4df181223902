"""`slap-fast probe`: linear and nearest-neighbor classifiers on frozen embeddings, and events by dense features."""

from __future__ import annotations

import argparse
import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_precision,
    add_quiet,
    beside_model,
    check_model,
    errors_about,
    load_model,
    positive,
    print_rows,
    report_skipped,
    show_progress,
)
from slap_fast.errors import MissingExtraError

if TYPE_CHECKING:
    from slap_fast.evaluation.probe.frames import FrameScores
    from slap_fast.evaluation.probe.scoring import ProbeResult, ProbeScores
    from slap_fast.inference.audio_inputs import Skipped

HELP = "train linear and nearest-neighbor classifiers on frozen embeddings, and score them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_precision(parser)
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="*",
        type=Path,
        help="labeled audio: the folder of ESC-50, UrbanSound8K, CREMA-D, RAVDESS, GTZAN, FSD50K or AudioSet; a folder "
        "with one subfolder per class; a table; or a prepared dataset",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for probe.json, plots and cached embeddings (default: MODEL/../probe)"
    )
    parser.add_argument("--test-split", metavar="NAME", help="split to test on (default: the published test split)")
    parser.add_argument("--neighbors", type=positive, default=10, metavar="K", help="nearest neighbors (default 10)")
    parser.add_argument(
        "--bootstrap", type=positive, default=1000, metavar="N", help="resamples for the intervals (default 1000)"
    )
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="skip longer files (default: none)")
    frames = parser.add_argument_group("events over time, from dense features of prepared datasets with events")
    frames.add_argument("--frames", action="store_true", help="probe frames instead of clips; needs --train and --test")
    frames.add_argument("--train", type=Path, metavar="DATASET", help="prepared dataset to fit the probe to")
    frames.add_argument("--test", type=Path, metavar="DATASET", help="prepared dataset to score it on")
    frames.add_argument("--threshold", type=float, default=0.5, help="probability of an active frame (default 0.5)")
    frames.add_argument(
        "--max-frames", type=positive, default=300_000, metavar="N", help="training frames in memory (default 300000)"
    )
    parser.add_argument("--no-plots", action="store_true", help="numbers only")
    parser.add_argument("--json", action="store_true", help="print probe.json instead of tables")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    _check_arguments(arguments)
    out: Path = arguments.out or beside_model(arguments.model, "probe")
    report = _frames(arguments) if arguments.frames else _clips(arguments, out)
    from slap_fast.runtime.durable_files import replace_text

    out.mkdir(parents=True, exist_ok=True)
    path = out / ("probe-frames.json" if arguments.frames else "probe.json")
    text = json.dumps(report.content, indent=2, ensure_ascii=False)
    replace_text(path, text + "\n")
    if arguments.json:
        print(text)
    else:
        for table in report.tables:
            print_rows(table)
        print(*(f"wrote {written}" for written in [path, *report.written]), sep="\n")
    return report_skipped(report.skipped, report.clips)


class _Report:
    """What a run of the command found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.content: dict[str, Any] = {"model": str(arguments.model)}
        if arguments.precision != "fp32":
            self.content["precision"] = arguments.precision
        self.tables: list[list[list[str]]] = []
        self.written: list[Path] = []
        self.skipped: list[Skipped] = []
        self.clips = 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.frames and (arguments.train is None or arguments.test is None):
        raise CommandError("--frames needs --train DATASET and --test DATASET")
    if arguments.frames and arguments.data:
        raise CommandError(f"--frames takes --train and --test, and no DATA; leave {arguments.data[0]} out")
    if not arguments.frames and (arguments.train or arguments.test):
        raise CommandError("--train and --test are for --frames; give labeled audio as DATA, with --test-split")
    if not arguments.frames and not arguments.data:
        raise CommandError("give DATA to probe, or --frames with --train and --test")
    if not arguments.max_seconds > 0:
        raise CommandError(f"--max-seconds is {arguments.max_seconds:g}; it must be above 0")
    if not 0 < arguments.threshold < 1:
        raise CommandError(f"--threshold is {arguments.threshold:g}; it must be between 0 and 1")
    if find_spec("sklearn") is None:
        raise MissingExtraError('probes need scikit-learn: pip install "slap-fast[eval]"')
    if not arguments.no_plots and not arguments.frames and find_spec("matplotlib") is None:
        raise MissingExtraError("plots need matplotlib: pip install matplotlib, or pass --no-plots")
    check_model(arguments.model, arguments.device)


def _clips(arguments: argparse.Namespace, out: Path) -> _Report:
    from slap_fast.data.labeled import open_labeled
    from slap_fast.evaluation.probe.splits import choose_splits

    # Errors in the data are reported before the model is loaded.
    opened = [(source, open_labeled(source)) for source in arguments.data]
    for source, labeled in opened:
        with errors_about(source):
            choose_splits(labeled, test_split=arguments.test_split)
    model = load_model(arguments.model, arguments.device, arguments.precision)
    from slap_fast.evaluation.probe.embeddings import labeled_embeddings
    from slap_fast.evaluation.probe.scoring import probe

    report = _Report(arguments)
    report.content["data"] = []
    rows = [["data", "probe", "score", "95 % interval", "over splits", "chance"]]
    for number, (source, labeled) in enumerate(opened, 1):
        embedded = labeled_embeddings(
            model,
            labeled,
            source,
            out / "embeddings",
            max_seconds=arguments.max_seconds,
            progress=show_progress(arguments),
        )
        result = probe(
            embedded.features,
            labeled,
            embedded.clips,
            test_split=arguments.test_split,
            neighbors=arguments.neighbors,
            resamples=arguments.bootstrap,
            progress=show_progress(arguments),
        )
        report.content["data"].append({"source": str(source), **result.to_json()})
        report.clips += len(labeled.files)
        report.skipped += embedded.skipped
        rows += _rows(result)
        for left_out in labeled.left_out:
            print(f"{left_out.origin}: {left_out.detail}", file=sys.stderr)
        for warning in result.warnings:
            print(f"{labeled.name}: {warning}", file=sys.stderr)
        if not arguments.no_plots:
            from slap_fast.evaluation.probe.plots import plot_probe

            same = [other.name for _, other in opened].count(labeled.name) > 1
            report.written.append(out / f"{labeled.name}{f'-{number}' if same else ''}.png")
            plot_probe(result, report.written[-1])
    report.tables.append(rows)
    report.content["skipped"] = [{"name": clip.name, "reason": clip.reason} for clip in report.skipped]
    return report


def _rows(result: ProbeResult) -> list[list[str]]:
    def row(kind: str, scores: ProbeScores) -> list[str]:
        low, high = scores.interval
        each = " ".join(f"{100 * score:.1f}" for score in scores.per_split.values())
        unit = {"accuracy": "%", "map": "% mAP"}[result.metric]
        return [
            f"{result.name} ({result.split_kind})",
            kind,
            f"{100 * scores.mean:.1f} {unit}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            each,
            f"{100 * result.chance:.1f}",
        ]

    return [row("linear", result.linear), row(f"{result.neighbors} nearest", result.knn)]


def _frames(arguments: argparse.Namespace) -> _Report:
    from slap_fast.data.format.index import ClipIndex

    train, test = ClipIndex.open(arguments.train), ClipIndex.open(arguments.test)
    model = load_model(arguments.model, arguments.device, arguments.precision)
    from slap_fast.evaluation.probe.frames import frame_probe

    scores = frame_probe(
        model,
        train,
        test,
        threshold=arguments.threshold,
        max_frames=arguments.max_frames,
        resamples=arguments.bootstrap,
        progress=show_progress(arguments),
    )
    report = _Report(arguments)
    report.content |= {"train": str(arguments.train), "test": str(arguments.test), **scores.to_json()}
    report.tables += [_frame_summary(scores), _frame_classes(scores)]
    report.skipped, report.clips = scores.skipped, len(train) + len(test)
    for warning in scores.warnings:
        print(warning, file=sys.stderr)
    return report


def _frame_summary(scores: FrameScores) -> list[list[str]]:
    low, high = scores.interval
    return [
        ["segment F1", f"{100 * scores.segment_f1:.1f} % ({100 * low:.1f} to {100 * high:.1f})"],
        ["  if every class is named in every segment", f"{100 * scores.always_f1:.1f} %"],
        ["  mean over classes", f"{100 * scores.segment_f1_macro:.1f} %"],
        ["AUROC of frames, mean over classes", f"{scores.auroc:.3f} (chance 0.5)"],
    ]


def _frame_classes(scores: FrameScores) -> list[list[str]]:
    def text(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    rows = [["class", "segment F1 %", "AUROC"]]
    for name, f1 in scores.per_class_f1.items():
        rows.append([name, text(f1, 100, 1), text(scores.per_class_auroc[name], 1, 3)])
    return rows
