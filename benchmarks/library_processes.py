"""`python -m benchmarks.library_processes WORK`: processes of a sound library: memory of indexing, time to an answer.

- Indexing: the memory of all processes together (proportional set size, every 0.2 s) while 10 minutes and 10 hours of
  one recording are indexed. It must not grow with the length.
- Cold start: `slap-fast search LIBRARY TEXT` on 100,000 windows, from start to end of the process, with files in the
  page cache. The best score is compared with an exact search.
- Warm: `Library.search` in a process that stays, each time with another text.

The text towers are of the size of the quickstart recipe and of the paper, with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.library_vectors import WINDOWS_OF_RECORDING, Vectors, read_blocks, saved_windows

ROOT = Path(__file__).resolve().parents[1]
SOUNDS = ("a dog", "a bell", "rain", "a violin", "an engine", "a crowd", "a door", "wind", "a bird", "a siren")
PLACES = ("far away", "in a church", "on a tin roof", "in the street", "at night", "under water", "in a tunnel")
TEXTS = tuple(f"{sound} {place}" for sound in SOUNDS for place in PLACES)
SAMPLED_EVERY = 0.2  # seconds

Figure = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.library_processes", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for models, recordings and libraries; it is used again")
    parser.add_argument("--windows", type=int, default=100_000, help="multiple of 20 (default: %(default)s)")
    parser.add_argument("--short", type=float, default=600.0, help="seconds of audio (default: %(default)s)")
    parser.add_argument("--long", type=float, default=36_000.0, help="seconds of audio (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=10, help="cold starts of each tower (default: %(default)s)")
    parser.add_argument("--size", action="append", choices=SIZES, help="of the text tower (may be repeated)")
    parser.add_argument("--no-indexing", action="store_true", help="measure searches only")
    parser.add_argument("--out", type=Path, help="folder to write the figures to, as a result of this benchmark")
    parser.add_argument("--child", choices=_CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child is not None:
        print(json.dumps(_CHILDREN[options.child](options)), flush=True)
        return 0
    figures = [] if options.no_indexing else _indexing(options)
    for size in options.size or SIZES:
        figures += _searching(options, size)
    for figure in figures:
        print(f"{figure['name']}: {figure['value']:.4g} (below {figure['bound'] or 'no bound'})")
    if options.out is not None:
        from benchmarks.harness.case import Settings
        from benchmarks.harness.results import build_result, save_result

        settings = Settings(threads=len(os.sched_getaffinity(0)), quick=options.windows < 100_000)
        result = build_result("library_processes", "Processes of a sound library", [], settings)
        save_result(result | {"figures": figures}, options.out)
    return int(any(figure["bound"] is not None and figure["value"] >= figure["bound"] for figure in figures))


def _indexing(options: argparse.Namespace) -> list[Figure]:
    from benchmarks.library_workload import QUICKSTART, long_recording, saved_model

    saved_model(QUICKSTART, options.work / "model-quickstart")
    peaks = {}
    for seconds in (options.short, options.long):
        files = long_recording(options.work / f"recording-{seconds:g}", seconds)
        began = time.perf_counter()
        with _Memory(_command(options, "index", files)) as memory:
            peaks[seconds] = memory.peak
        rate = seconds / (time.perf_counter() - began)
    hours, minutes = options.long / 3600, options.short / 60
    return [
        _figure(f"indexing {minutes:g} min: peak memory of all processes, MB", peaks[options.short] / 1e6),
        _figure(f"indexing {hours:g} h: peak memory of all processes, MB", peaks[options.long] / 1e6),
        _figure("ratio", peaks[options.long] / peaks[options.short], 1.25),
        _figure(f"indexing {hours:g} h, with the start of Python: x real time", rate),
    ]


class _Memory:
    """Runs a command, and samples the memory of it and of its children until it ends."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.peak = 0

    def __enter__(self) -> _Memory:
        process = subprocess.Popen(self._command, cwd=ROOT, stdout=subprocess.DEVNULL)
        sampler = threading.Thread(target=self._sample, args=(process,))
        sampler.start()
        status = process.wait()
        sampler.join()
        if status:
            raise subprocess.CalledProcessError(status, self._command)
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def _sample(self, process: subprocess.Popen[bytes]) -> None:
        import psutil

        while process.poll() is None:
            total = 0
            try:
                parent = psutil.Process(process.pid)
                for one in (parent, *parent.children(recursive=True)):
                    total += one.memory_full_info().pss
            except psutil.Error:  # one has just ended
                continue
            self.peak = max(self.peak, total)
            time.sleep(SAMPLED_EVERY)


def _index(options: argparse.Namespace) -> int:
    from benchmarks.library_workload import fresh_library
    from slap_fast.library.library import Library

    with Library(fresh_library(options.work / "indexed", options.work / "model-quickstart")) as library:
        library.add(options.of)
        return len(library)


def _searching(options: argparse.Namespace, size: str) -> list[Figure]:
    library = options.work / f"library-{size}-{options.windows}"
    if not library.exists():
        _make_library(options, size, library)
    texts = TEXTS[: options.starts]
    expected = _exact(options, library, size, texts)
    seconds = []
    for text, best in zip((TEXTS[0], *texts), (expected[0], *expected), strict=True):
        began = time.perf_counter()
        command = [sys.executable, "-m", "slap_fast", "search", str(library), text, "--json", "--top", "10"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        found = json.loads(done.stdout.splitlines()[0])["score"]
        if abs(found - best) > 1e-4:
            raise AssertionError(f"{text!r}: the best score is {found}, and {best} by an exact search")
    warm = json.loads(subprocess.run(_command(options, "warm", library), **_PIPED).stdout.splitlines()[-1])
    of = f"{options.windows:,} windows, {size} text tower"
    return [
        _figure(f"{of}: cold start, median, s", statistics.median(seconds[1:]), 1.0),
        _figure(f"{of}: cold start, slowest, s", max(seconds[1:])),
        _figure(f"{of}: warm query, p50, ms", 1e3 * float(np.quantile(warm, 0.5)), 50.0),
        _figure(f"{of}: warm query, p99, ms", 1e3 * float(np.quantile(warm, 0.99))),
    ]


def _make_library(options: argparse.Namespace, size: str, folder: Path) -> None:
    """A library of random windows with the text tower of a model with random weights."""
    import benchmarks.library_workload as workload
    from slap_fast.library.database import Database, WindowRow
    from slap_fast.library.library import Library
    from slap_fast.library.text_tower import export_text_tower
    from slap_fast.library.vector_index import build
    from slap_fast.models.slap import SLAP

    config = getattr(workload, SIZES[size])
    model = workload.saved_model(config, options.work / f"model-{size}")
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    with Library(temporary, model=model):
        pass
    windows = saved_windows(Vectors(config.audio.width), options.windows, options.work)
    with Database(temporary, write=True) as database:
        number = 0
        for block in read_blocks(windows):
            with database.transaction():
                for begin in range(0, len(block), WINDOWS_OF_RECORDING):
                    rows = block[begin : begin + WINDOWS_OF_RECORDING]
                    database.store_recording(
                        f"/recordings/{number:06d}.wav",
                        "",
                        [WindowRow(5.0 * row, 5.0 * row + 10.0, False, vector) for row, vector in enumerate(rows)],
                        size=1,
                        mtime_ns=1,
                        digest=bytes(16),
                        seconds=5.0 * len(rows) + 5.0,
                        embedding=rows[0],
                    )
                    number += 1
        build(database)
    export_text_tower(SLAP.from_pretrained(model), temporary)
    temporary.rename(folder)


def _exact(options: argparse.Namespace, library: Path, size: str, texts: Sequence[str]) -> list[float]:
    """The score of the best window for each text."""
    from slap_fast.models.slap import SLAP

    queries = SLAP.from_pretrained(options.work / f"model-{size}").encode_text(list(texts)).numpy()
    windows = saved_windows(Vectors(queries.shape[1]), options.windows, options.work)
    return np.max([(queries @ block.T).max(1) for block in read_blocks(windows)], axis=0).tolist()


def _warm(options: argparse.Namespace) -> list[float]:
    from slap_fast.library.library import Library

    seconds = []
    with Library(options.of) as library:
        library.warm_up()
        library.search("something else")
        for text in TEXTS:
            began = time.perf_counter()
            library.search(text)
            seconds.append(time.perf_counter() - began)
    return seconds


SIZES = {"quickstart": "QUICKSTART", "paper-size": "PAPER"}
_CHILDREN: dict[str, Callable[[argparse.Namespace], Any]] = {"index": _index, "warm": _warm}
_PIPED: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True, "check": True}


def _command(options: argparse.Namespace, child: str, of: Path) -> list[str]:
    module = [sys.executable, "-m", "benchmarks.library_processes", str(options.work.absolute())]
    return [*module, "--child", child, "--of", str(of.absolute())]


def _figure(name: str, value: float, bound: float | None = None) -> Figure:
    return {"name": name, "value": value, "bound": bound}


if __name__ == "__main__":
    raise SystemExit(main())
