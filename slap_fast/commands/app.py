"""`slap-fast app`: a local web page of a library."""

from __future__ import annotations

import argparse
import sys

from slap_fast.commands.library_arguments import add_library_argument, check_library
from slap_fast.commands.shared import CommandError, model_argument, positive

HELP = "search a library, listen and look in the browser"
_LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_library_argument(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine alone); another lets others listen to the library",
    )
    parser.add_argument(
        "--port", type=_port, default=7860, help="port; if it is in use, the next free one (default 7860; 0: any)"
    )
    parser.add_argument(
        "--share", action="store_true", help="also make a public link through Gradio's servers; off by default"
    )
    parser.add_argument(
        "--model",
        type=model_argument,
        help="where the model of the library is, if it was moved (default: where the library was made with it)",
    )
    parser.add_argument(
        "--max-upload",
        type=positive,
        default=200,
        metavar="MIB",
        help="size of an uploaded sound in MiB (default 200)",
    )


def run(arguments: argparse.Namespace) -> int:
    check_library(arguments.library)
    _warn(arguments.host, arguments.share)
    from slap_fast.app.server import serve
    from slap_fast.library.library import Library

    with Library(arguments.library, model=arguments.model) as library:
        serve(
            library,
            host=arguments.host,
            port=arguments.port,
            share=arguments.share,
            max_upload_mib=arguments.max_upload,
            ready=_ready,
        )
    return 0


def _ready(address: str) -> None:
    print(f"open {address}", flush=True)
    print("slap-fast app: stop it with Ctrl+C", file=sys.stderr, flush=True)


def _warn(host: str, share: bool) -> None:
    if not host:
        raise CommandError("--host is empty; give an address, or leave it out")
    if host not in _LOCAL:
        print(
            f"slap-fast app: --host {host}: everyone who reaches this address can listen to all recordings of the "
            "library; there is no password",
            file=sys.stderr,
        )
    if share:
        print(
            "slap-fast app: --share: everyone who has the public link can listen to all recordings of the library; "
            "there is no password",
            file=sys.stderr,
        )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give 0 to 65535")
    return int(text)
