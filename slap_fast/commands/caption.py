"""`slap-fast caption`: prints a generated caption for each clip."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from slap_fast.commands.audio_arguments import add_audio_arguments, check_audio_arguments, collect_inputs
from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_precision,
    add_quiet,
    has_model,
    load_model,
    positive,
    report_skipped,
    show_progress,
)

if TYPE_CHECKING:
    from slap_fast.inference.audio_inputs import Skipped

HELP = "describe audio in words"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_precision(parser)
    add_audio_arguments(parser, in_windows=False)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per clip, with its reference captions if known"
    )
    add_decoding_arguments(parser)
    add_quiet(parser)


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beams", type=positive, default=1, metavar="N", help="beam search with N beams (default 1: greedy decoding)"
    )
    parser.add_argument(
        "--max-length", type=positive, default=64, metavar="N", help="tokens after which a caption is cut (default 64)"
    )


def run(arguments: argparse.Namespace) -> int:
    if has_model(arguments.model):
        check_audio_arguments(arguments.audio, max_seconds=arguments.max_seconds)
    model = load_model(arguments.model, arguments.device, arguments.precision)
    from tqdm import tqdm

    from slap_fast.inference.audio_inputs import describe_nothing_read
    from slap_fast.inference.caption import generate_captions

    inputs = collect_inputs(arguments.audio, max_seconds=arguments.max_seconds)
    skipped: list[Skipped] = []
    captions = generate_captions(
        model,
        inputs,
        skipped,
        beam_size=arguments.beams,
        max_length=arguments.max_length,
        progress=show_progress(arguments),
    )
    for generated in captions:
        line = generated.to_json() if arguments.json else f"{generated.name}\t{generated.caption}"
        # tqdm.write clears and redraws a progress bar on the same terminal.
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    if len(skipped) == len(inputs):
        raise CommandError(describe_nothing_read(skipped))
    return report_skipped(skipped, len(inputs))
