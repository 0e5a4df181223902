"""`slap-fast train`: runs `slap_fast/train.py` in this process."""

from __future__ import annotations

import argparse

HELP = "train a model in this process; for several, run: torchrun --nproc-per-node N slap_fast/train.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="recipe=quickstart, data.train=FOLDER, training.output=FOLDER, or any other key of a recipe",
    )


def run(arguments: argparse.Namespace) -> int:
    from slap_fast.config.loading import read_arguments

    settings = read_arguments(arguments.overrides)  # reports errors before torch is loaded, which takes seconds
    if not settings.get("model.init_from"):
        settings.config()
    from slap_fast.train import main

    main(arguments.overrides)
    return 0
