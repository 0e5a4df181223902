"""`slap-fast search`: lists the clips most similar to a text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from slap_fast.commands.audio_arguments import add_audio_arguments, check_audio_arguments, collect_inputs
from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_quiet,
    has_model,
    load_model,
    positive,
    print_rows,
    report_skipped,
    show_progress,
)

HELP = "find the clips that sound most like a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("query", metavar="QUERY", help="what to look for, such as 'a dog barks twice'")
    add_audio_arguments(parser, nargs="*")
    parser.add_argument("--embeddings", type=Path, help="search this file of `slap-fast embed` instead of AUDIO")
    parser.add_argument("--top", type=positive, default=10, help="number of results (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per result")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.audio) == bool(arguments.embeddings):
        raise CommandError("give either AUDIO or --embeddings FILE to search in")
    if not arguments.query.strip():
        raise CommandError("QUERY is empty; give a text to search for")
    if arguments.embeddings:
        from slap_fast.commands.embedding_files import read_embeddings

        names, stored = read_embeddings(arguments.embeddings)
    elif has_model(arguments.model):
        check_audio_arguments(arguments.audio, max_seconds=arguments.max_seconds)
    model = load_model(arguments.model, arguments.device)
    import torch

    from slap_fast.inference.embed import embed_audio, embed_texts

    skipped, total = [], 0
    if arguments.embeddings:
        embeddings = torch.from_numpy(stored)
    else:
        inputs = collect_inputs(arguments.audio, max_seconds=arguments.max_seconds)
        audio = embed_audio(model, inputs, progress=show_progress(arguments))
        names, embeddings = [clip.name for clip in audio.inputs], audio.embeddings
        skipped, total = audio.skipped, len(inputs)
    query = embed_texts(model, [arguments.query])[0]
    if embeddings.shape[1] != len(query):
        raise CommandError(
            f"{arguments.embeddings}: embeddings have width {embeddings.shape[1]}, this model's have {len(query)}; "
            "embed again with this model"
        )
    similarity = embeddings @ query
    best = similarity.argsort(descending=True, stable=True)[: arguments.top].tolist()
    if arguments.json:
        for clip in best:
            print(json.dumps({"name": names[clip], "similarity": float(similarity[clip])}, ensure_ascii=False))
    else:
        print_rows([(f"{float(similarity[clip]):.4f}", names[clip]) for clip in best])
    return report_skipped(skipped, total)
