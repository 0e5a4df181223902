"""`slap-fast info`: versions, devices, and which backend serves each op."""

from __future__ import annotations

import argparse

HELP = "show versions, devices and the backends that serve here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(arguments: argparse.Namespace) -> int:
    del arguments
    from slap_fast.info import report

    print(report())
    return 0
