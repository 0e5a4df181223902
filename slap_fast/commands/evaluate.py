"""`slap-fast evaluate`: retrieval on a prepared dataset, zero-shot classification, and the plots of both."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_quiet,
    blaming,
    load_model,
    positive,
    report_skipped,
    show_progress,
)

if TYPE_CHECKING:
    from slap_fast.inference.embed import AudioInput, EmbeddedDataset, Skipped
    from slap_fast.models.slap import SLAP

HELP = "measure retrieval or zero-shot classification, and draw plots"
MATRIX_CLIPS = 60
LOCALISATION_CANDIDATES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "dataset", metavar="DATASET", type=Path, nargs="?", help="folder that `slap-fast prepare` wrote"
    )
    parser.add_argument("--out", type=Path, help="folder for metrics.json and the plots (default: MODEL/../evaluation)")
    parser.add_argument(
        "--log", type=Path, help="log.jsonl of the run to plot (default: MODEL/../log.jsonl if it is there)"
    )
    parser.add_argument("--limit", type=positive, help="this many clips, at even distances (default: all)")
    parser.add_argument("--localise", type=int, default=3, metavar="N", help="clips to follow over time (default 3)")
    parser.add_argument(
        "--query", action="append", help="text to follow through them (default: their own events or captions)"
    )
    parser.add_argument(
        "--captions", action="store_true", help="also write captions.jsonl: generated beside reference ones"
    )
    parser.add_argument(
        "--zero-shot", type=Path, metavar="FOLDER|CSV", help="classify: a folder a class, or file and class"
    )
    parser.add_argument("--templates", nargs="+", metavar="TEMPLATE", help="prompts with {} for the class name")
    parser.add_argument("--no-plots", action="store_true", help="numbers only")
    parser.add_argument("--json", action="store_true", help="print metrics.json in place of tables")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.dataset is None and arguments.zero_shot is None:
        raise CommandError("give a DATASET, --zero-shot FOLDER, or both")
    log = _find_log(arguments)
    if not arguments.no_plots:
        _need_matplotlib()
    from slap_fast.data.format.index import ClipIndex

    index = ClipIndex.open(arguments.dataset) if arguments.dataset else None
    labelled = _labelled(arguments.zero_shot) if arguments.zero_shot is not None else None
    out = arguments.out or arguments.model.resolve().parent / "evaluation"
    model = load_model(arguments.model, arguments.device)
    out.mkdir(parents=True, exist_ok=True)

    report: dict[str, Any] = {"model": str(arguments.model)}
    skipped: list[Skipped] = []
    written = []
    total = 0
    if index is not None:
        from slap_fast.evaluation.retrieval import embedding_retrieval_metrics
        from slap_fast.inference.embed import embed_dataset

        dataset = embed_dataset(model, index, limit=arguments.limit, progress=show_progress(arguments))
        with blaming(arguments.model):
            metrics = embedding_retrieval_metrics(dataset.audio, dataset.text, dataset.text_to_audio, dataset.captions)
        report |= {"dataset": str(arguments.dataset), "retrieval": metrics}
        skipped += dataset.skipped
        total += len(dataset.clips) + len(dataset.skipped)
        if not arguments.no_plots:
            written += _plot_dataset(model, dataset, arguments, out)
        if arguments.captions:
            written.append(_write_captions(model, dataset, out, show_progress(arguments)))
    if labelled is not None:
        metrics, confusion, unread = _zero_shot(model, arguments, *labelled)
        report["zero_shot"] = {"source": str(arguments.zero_shot), **metrics, "confusion": confusion}
        skipped += unread
        total += len(labelled[0])
    if log is not None and not arguments.no_plots:
        from slap_fast.evaluation.plots import plot_losses

        with blaming(log):
            plot_losses(log, out / "losses.png")
        written.append(out / "losses.png")

    report["skipped"] = [{"name": clip.name, "reason": clip.reason} for clip in skipped]
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    print(text if arguments.json else _tables(report, [out / "metrics.json", *written]))
    return report_skipped(skipped, total)


def _find_log(arguments: argparse.Namespace) -> Path | None:
    if arguments.log is not None:
        if not arguments.log.is_file():
            raise CommandError(f"{arguments.log}: no such log; training writes it as <output>/log.jsonl")
        return arguments.log
    beside = arguments.model.resolve().parent / "log.jsonl"
    return beside if beside.is_file() else None


def _need_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise CommandError("plots need matplotlib: pip install matplotlib, or pass --no-plots")


def _plot_dataset(model: SLAP, dataset: EmbeddedDataset, arguments: argparse.Namespace, out: Path) -> list[Path]:
    from slap_fast.evaluation.localization import events_of, localise, mel_frames
    from slap_fast.evaluation.plots import plot_localisation, plot_similarity
    from slap_fast.inference.embed import evenly

    first = dataset.first_captions()
    shown = first[evenly(len(first), MATRIX_CLIPS)]
    similarity = dataset.audio[dataset.text_to_audio[shown]] @ dataset.text[shown].T
    plot_similarity(similarity.numpy(), [dataset.captions[text] for text in shown.tolist()], out / "similarity.png")
    written = [out / "similarity.png"]

    for number, clip in enumerate(_worth_following(dataset.clips, arguments.localise)):
        metadata = clip.metadata()
        events = events_of(metadata)
        queries = arguments.query or list(dict.fromkeys(event.text for event in events)) or metadata["captions"][:1]
        waveform = clip.read(model.config.mel.sample_rate)
        png = out / f"localisation{f'-{number + 1}' if number else ''}.png"
        plot_localisation(
            mel_frames(waveform, model.config.mel),
            localise(model, waveform, queries),
            png,
            mel_config=model.config.mel,
            title=metadata["captions"][0],
            events=events,
        )
        written.append(png)
    return written


def _worth_following(clips: list[AudioInput], limit: int) -> list[AudioInput]:
    """Clips at even distances; only those with several known events, where there are such."""
    from slap_fast.evaluation.localization import events_of
    from slap_fast.inference.embed import evenly

    candidates = [clips[at] for at in evenly(len(clips), LOCALISATION_CANDIDATES)]
    eventful = [clip for clip in candidates if len({event.text for event in events_of(clip.metadata())}) > 1]
    candidates = eventful or candidates
    return [candidates[at] for at in evenly(len(candidates), limit)]


def _write_captions(model: SLAP, dataset: EmbeddedDataset, out: Path, progress: bool) -> Path:
    from slap_fast.inference.caption import generate_captions

    path = out / "captions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for generated in generate_captions(model, dataset.clips, [], progress=progress):
            file.write(generated.to_json() + "\n")
    return path


def _labelled(source: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    from slap_fast.audio.files import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
    from slap_fast.evaluation.zero_shot import labelled_files

    return labelled_files(source, extensions=AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS)


def _zero_shot(
    model: SLAP, arguments: argparse.Namespace, files: list[tuple[Path, int]], names: list[str]
) -> tuple[dict[str, float], dict[str, Any], list[Skipped]]:
    import torch

    from slap_fast.evaluation.zero_shot import TEMPLATES, class_embeddings, confusion_matrix, zero_shot_metrics
    from slap_fast.inference.embed import embed_inputs, file_input

    classes = class_embeddings(model, names, arguments.templates or TEMPLATES)
    label_of = {str(file): label for file, label in files}
    audio = embed_inputs(model, [file_input(file) for file, _ in files], progress=show_progress(arguments))
    labels = torch.tensor([label_of[clip.name] for clip in audio.inputs])
    confusion = {"classes": names, "counts": confusion_matrix(audio.embeddings, classes, labels).tolist()}
    return zero_shot_metrics(audio.embeddings, classes, labels), confusion, audio.skipped


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
