"""One library, one page and one browser for all tests of the page: each takes seconds to start.

Fixtures import what they need: tests for GPUs are collected without packages that a GPU machine may lack.
"""

from __future__ import annotations

import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.app.served import Served


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_library: Path) -> Path:
    """Has `sounds`, their `library`, and `secret.txt`, which is not among them."""
    from tests.app.served import make_dataset, make_library, make_sounds

    folder = tmp_path_factory.mktemp("page")
    make_sounds(folder / "sounds")
    (folder / "secret.txt").write_text("secret")
    make_library(folder, empty_library, sounds=[folder / "sounds", make_dataset(folder)])
    return folder


@pytest.fixture(scope="session")
def page(folder: Path) -> Iterator[Served]:
    """The page of the library, which takes uploads of at most 1 MiB."""
    from tests.app.served import served

    # What the user's environment allows must not open the page.
    environment = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "GRADIO_MCP_SERVER": "True"}
    with served(folder / "library", "--max-upload", "1", environment=environment) as running:
        yield running
        # The last word on all tests of the page: Ctrl+C ends it with one line, whatever it is doing.
        waiting = [f"pictures/r{number % 4 + 1}.png?start=0&end={1 + number / 50}" for number in range(40)]
        with ThreadPoolExecutor(40) as clients:
            for path in (*waiting, "gradio_api/heartbeat/open"):
                clients.submit(urllib.request.urlopen, running.address + path)
            time.sleep(1)
            assert running.stop(signal.SIGINT) == 130
        assert running.process.stdout is not None
        printed = running.process.stdout.read().splitlines()
        assert printed[-1] == "slap-fast: interrupted"
        # Tests provoke errors of Gradio, which it prints; a stop has those of answers that were broken off.
        assert not [line for line in printed if "Cancel" in line]
