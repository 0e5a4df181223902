"""`slap-fast caption`: what a clip sounds like, in words."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from slap_fast.commands.audio_inputs import add_audio_arguments, check_inputs, collect_inputs
from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_quiet,
    has_model,
    load_model,
    report_skipped,
    show_progress,
)

if TYPE_CHECKING:
    from slap_fast.inference.embed import Skipped

HELP = "describe audio in words"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_audio_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a clip, with its reference captions if known"
    )
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    if has_model(arguments.model):
        check_inputs(arguments.audio, max_seconds=arguments.max_seconds)
    model = load_model(arguments.model, arguments.device)
    from tqdm import tqdm

    from slap_fast.inference.caption import generate_captions
    from slap_fast.inference.embed import describe_nothing_read

    inputs = collect_inputs(arguments.audio, max_seconds=arguments.max_seconds)
    skipped: list[Skipped] = []
    for generated in generate_captions(model, inputs, skipped, progress=show_progress(arguments)):
        line = generated.to_json() if arguments.json else f"{generated.name}\t{generated.caption}"
        # On a terminal the progress bar steps aside for the line.
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    if len(skipped) == len(inputs):
        raise CommandError(describe_nothing_read(skipped))
    return report_skipped(skipped, len(inputs))
