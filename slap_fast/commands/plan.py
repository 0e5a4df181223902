"""`slap-fast plan`: estimates memory, step time and storage of a run."""

from __future__ import annotations

import argparse
import json

HELP = "estimate memory, step time and storage of a run on devices that need not be here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments",
        metavar="KEY=VALUE",
        nargs="+",
        help="recipe=paper devices=64 device=h100, any other key of a recipe, or options of the plan as plan.KEY=VALUE",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    from slap_fast.planning.request import parse_request

    request = parse_request(arguments.arguments)  # before the planner loads torch, which takes seconds
    from slap_fast.planning.planner import make_plan
    from slap_fast.planning.report import as_json, as_text

    plan = make_plan(request)
    print(json.dumps(as_json(plan), indent=2) if arguments.json else as_text(plan))
    return 0
