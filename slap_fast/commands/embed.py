"""`slap-fast embed`: writes the embeddings of audio or texts to a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.audio_arguments import add_audio_arguments, check_audio_arguments, collect_inputs
from slap_fast.commands.shared import (
    add_model_arguments,
    add_precision,
    add_quiet,
    has_model,
    load_model,
    report_skipped,
    show_progress,
)

if TYPE_CHECKING:
    from slap_fast.inference.embed import EmbeddedAudio

HELP = "write the embeddings of audio or texts to a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_precision(parser)
    add_audio_arguments(parser, alternative="; with --text, texts")
    parser.add_argument("--out", type=Path, required=True, help="file ending in .npz, .npy or .safetensors")
    parser.add_argument("--text", action="store_true", help="the inputs are texts, not audio")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    from slap_fast.commands.embedding_files import check_suffix, check_writable, write_embeddings

    check_suffix(arguments.out)
    check_writable(arguments.out)
    if not arguments.text and has_model(arguments.model):
        check_audio_arguments(arguments.audio, max_seconds=arguments.max_seconds)
    model = load_model(arguments.model, arguments.device, arguments.precision)
    from slap_fast.inference.embed import EmbeddingInterrupted, embed_audio, embed_texts

    inputs = [] if arguments.text else collect_inputs(arguments.audio, max_seconds=arguments.max_seconds)
    if arguments.text:
        names, skipped = arguments.audio, []
        embeddings = embed_texts(model, names, progress=show_progress(arguments))
    else:
        try:
            audio = embed_audio(model, inputs, progress=show_progress(arguments))
        except EmbeddingInterrupted as interrupt:
            _write_partial(arguments.out, interrupt.done, len(inputs))
            raise
        names, embeddings, skipped = [clip.name for clip in audio.inputs], audio.embeddings, audio.skipped
    write_embeddings(arguments.out, names, embeddings.numpy())
    of_precision = "" if arguments.precision == "fp32" else f", by {arguments.precision} weights"
    print(f"{arguments.out}: {len(names)} embeddings of width {embeddings.shape[1]}{of_precision}")
    return report_skipped(skipped, len(inputs))


def _write_partial(out: Path, done: EmbeddedAudio, total: int) -> None:
    """Write the embeddings so far to `*.partial.*` next to `out`, which is only ever written complete."""
    from slap_fast.commands.embedding_files import write_embeddings

    report_skipped(done.skipped, total)
    if not done.inputs:
        return
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    write_embeddings(partial, [clip.name for clip in done.inputs], done.embeddings.numpy())
    print(f"slap-fast: {len(done.inputs)} of {total} embeddings were done and are kept in {partial}", file=sys.stderr)
