"""`slap-fast evaluate`: retrieval on a prepared dataset, zero-shot classification, and plots."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_quiet,
    beside_model,
    errors_about,
    load_model,
    positive,
    report_skipped,
    show_progress,
)

if TYPE_CHECKING:
    from slap_fast.data.format.index import ClipIndex
    from slap_fast.data.labeled import LabeledFile
    from slap_fast.inference.audio_inputs import AudioInput, Skipped
    from slap_fast.inference.embed import EmbeddedDataset
    from slap_fast.models.slap import SLAP

HELP = "measure retrieval or zero-shot classification, and draw plots"
MATRIX_CLIPS = 60
LOCALIZATION_CANDIDATES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
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
        "--captions", action="store_true", help="also write captions.jsonl: generated and reference captions"
    )
    parser.add_argument(
        "--zero-shot", type=Path, metavar="FOLDER|CSV", help="classify: one subfolder per class, or file and class"
    )
    parser.add_argument("--templates", nargs="+", metavar="TEMPLATE", help="prompts with {} for the class name")
    parser.add_argument("--no-plots", action="store_true", help="numbers only")
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of tables")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.dataset is None and arguments.zero_shot is None:
        raise CommandError("give a DATASET, --zero-shot FOLDER, or both")
    log = _find_log(arguments)
    if not arguments.no_plots:
        _require_matplotlib()
    # Errors in the data are reported before the model is loaded.
    index = labeled = None
    if arguments.dataset is not None:
        from slap_fast.data.format.index import ClipIndex

        index = ClipIndex.open(arguments.dataset)
    if arguments.zero_shot is not None:
        from slap_fast.data.labeled import open_labeled

        labeled = open_labeled(arguments.zero_shot)
    evaluation = _Evaluation(load_model(arguments.model, arguments.device), arguments)
    if index is not None:
        evaluation.retrieval(index)
    if labeled is not None:
        evaluation.zero_shot([(file, file.labels[0]) for file in labeled.files], labeled.classes)
    if log is not None and not arguments.no_plots:
        evaluation.plot_training_log(log)
    return evaluation.finish()


class _Evaluation:
    """Runs the evaluations that the arguments ask for, and collects metrics, skipped clips and written files."""

    def __init__(self, model: SLAP, arguments: argparse.Namespace) -> None:
        if arguments.captions:
            model.require("caption_decoder")
        self._model = model
        self._arguments = arguments
        self._out: Path = arguments.out or beside_model(arguments.model, "evaluation")
        self._report: dict[str, Any] = {"model": str(arguments.model)}
        self._clips = 0
        self._skipped: list[Skipped] = []
        self._written: list[Path] = []
        self._out.mkdir(parents=True, exist_ok=True)

    def retrieval(self, index: ClipIndex) -> None:
        from slap_fast.evaluation.retrieval import embedding_retrieval_metrics
        from slap_fast.inference.audio_inputs import dataset_inputs
        from slap_fast.inference.embed import embed_dataset

        arguments = self._arguments
        clips = dataset_inputs(index, arguments.limit)
        dataset = embed_dataset(self._model, clips, progress=show_progress(arguments))
        with errors_about(arguments.model):
            metrics = embedding_retrieval_metrics(dataset.audio, dataset.text, dataset.text_to_audio, dataset.captions)
        self._report |= {"dataset": str(arguments.dataset), "retrieval": metrics}
        self._clips += len(clips)
        self._skipped += dataset.skipped
        if not arguments.no_plots:
            self._plot_similarity(dataset)
            self._plot_localization(dataset.clips)
        if arguments.captions:
            self._write_captions(dataset.clips)

    def zero_shot(self, files: list[tuple[LabeledFile, int]], names: list[str]) -> None:
        import torch

        from slap_fast.evaluation.zero_shot import TEMPLATES, class_embeddings, confusion_matrix, zero_shot_metrics
        from slap_fast.inference.audio_inputs import labeled_input
        from slap_fast.inference.embed import embed_audio

        arguments = self._arguments
        classes = class_embeddings(self._model, names, arguments.templates or TEMPLATES)
        label_of = {str(file.path): label for file, label in files}
        audio = embed_audio(self._model, [labeled_input(file) for file, _ in files], progress=show_progress(arguments))
        labels = torch.tensor([label_of[clip.name] for clip in audio.inputs])
        self._report["zero_shot"] = {
            "source": str(arguments.zero_shot),
            **zero_shot_metrics(audio.embeddings, classes, labels),
            "confusion": {"classes": names, "counts": confusion_matrix(audio.embeddings, classes, labels).tolist()},
        }
        self._clips += len(files)
        self._skipped += audio.skipped

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
        print(text if self._arguments.json else _tables(self._report, [path, *self._written]))
        return report_skipped(self._skipped, self._clips)

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

    def _write_captions(self, clips: list[AudioInput]) -> None:
        from slap_fast.inference.caption import generate_captions

        progress = show_progress(self._arguments)
        with self._new_file("captions.jsonl").open("w", encoding="utf-8") as file:
            for generated in generate_captions(self._model, clips, [], progress=progress):
                file.write(generated.to_json() + "\n")


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


def _tables(report: dict[str, Any], written: list[Path]) -> str:
    from slap_fast.evaluation.retrieval import format_retrieval

    lines = []
    if (retrieval := report.get("retrieval")) is not None:
        shared = int(retrieval["shared_captions"])
        note = f" ({shared} of a text that other clips have too; it counts for each of them)" if shared else ""
        counts = f"{retrieval['clips']:.0f} clips, {retrieval['captions']:.0f} captions{note}"
        lines += [counts, format_retrieval(retrieval)]
    if (zero_shot := report.get("zero_shot")) is not None:
        lines.append(
            f"zero-shot: {100 * zero_shot['accuracy_at_1']:.1f} % of {zero_shot['clips']:.0f} clips right "
            f"(top 5: {100 * zero_shot['accuracy_at_5']:.1f} %; mean of {zero_shot['classes']:.0f} classes: "
            f"{100 * zero_shot['mean_class_accuracy']:.1f} %; chance: {100 * zero_shot['chance']:.1f} %)"
        )
    return "\n".join([*lines, *(f"wrote {path}" for path in written)])
