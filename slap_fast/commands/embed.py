"""`slap-fast embed`: audio or texts to vectors in a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from slap_fast.commands.audio_inputs import add_audio_arguments, collect_inputs
from slap_fast.commands.shared import add_model_arguments, add_quiet, load_model, report_skipped, show_progress

HELP = "write the embeddings of audio or texts to a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_audio_arguments(parser, what="; with --text, texts")
    parser.add_argument("--out", type=Path, required=True, help="file ending in .npz, .npy or .safetensors")
    parser.add_argument("--text", action="store_true", help="the inputs are texts, not audio")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    from slap_fast.commands.embedding_files import check_suffix, write_embeddings
    from slap_fast.evaluation.dataset import embed_inputs, embed_texts

    check_suffix(arguments.out)
    inputs = [] if arguments.text else collect_inputs(arguments.audio, max_seconds=arguments.max_seconds)
    model = load_model(arguments.model, arguments.device)
    if arguments.text:
        names, skipped = arguments.audio, []
        embeddings = embed_texts(model, names, progress=show_progress(arguments))
    else:
        audio = embed_inputs(model, inputs, progress=show_progress(arguments))
        names, embeddings, skipped = [clip.name for clip in audio.inputs], audio.embeddings, audio.skipped
    write_embeddings(arguments.out, names, embeddings.numpy())
    print(f"{arguments.out}: {len(names)} embeddings of width {embeddings.shape[1]}")
    return report_skipped(skipped, len(inputs))
