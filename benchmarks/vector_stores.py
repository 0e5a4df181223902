"""`python -m benchmarks.vector_stores WORK`: where a sound library keeps its vectors: FAISS + SQLite against LanceDB.

Each store gets the same windows of `benchmarks/library_vectors.py` with file, start and end. In this order:

- build: insert all windows in recordings of 20, and make the index; the peak memory of the process, and the folder.
- settings of LanceDB: of `SETTINGS` and its default, the fastest with recall@10 of at least 0.99 on queries of their
  own, by sound and by text; else the one with the highest. Ours answers at its default.
- queries: all stores open in one process, one query at a time, in turns, by sound and by text.
- cold start: from the start of Python to the first answer, with all imports; files are in the page cache.
- updates: add 1,000 windows, change 100, remove 1,000, each until a search shows it, and a query before the index is
  brought up to date. Every answer is checked.
- crash: a process inserts 2,000 windows a commit and is killed (SIGKILL) at a random moment. Then: windows whose commit
  was acknowledged and that are gone, recordings that are there in part, windows that are there twice; and what is still
  missing or there twice after the insert went on where it was.

Stores that are built already in WORK are not built again. WORK needs 20 GB for 1 M windows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.library_vectors import (
    WINDOWS_OF_RECORDING,
    Vectors,
    exact_neighbors,
    read_blocks,
    recall,
    saved_windows,
)
from benchmarks.vector_store_peers import NAMES, Setting, Store, insert_all, open_store, settings_of

ROOT = Path(__file__).resolve().parents[1]
WANTED_RECALL = 0.99
COUNT = 10  # results of a query
ADDED, CHANGED, REMOVED = 1_000, 100, 1_000  # windows
COMMIT = 2_000  # windows, in the crash drill
SAME = 0.9999  # score of a window with itself, at least

Figures = dict[str, float | str]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vector_stores", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for vectors and stores")
    parser.add_argument("--windows", type=int, default=1_000_000, help="multiple of 20 (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="of each store (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="cold starts of each store (default: %(default)s)")
    parser.add_argument("--store", action="append", choices=NAMES, help="only this one (may be repeated)")
    parser.add_argument("--build-only", action="store_true", help="build the stores, and measure nothing else")
    parser.add_argument("--out", type=Path, help="folder to write the table to, as a result of this benchmark")
    parser.add_argument("--setting", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=_CHILDREN, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.windows % WINDOWS_OF_RECORDING:
        parser.error(f"--windows {options.windows}: must be a multiple of {WINDOWS_OF_RECORDING}")
    if options.child is not None:
        print(json.dumps(_CHILDREN[options.child](options)), flush=True)
        return 0
    names = options.store or list(NAMES)
    saved_windows(Vectors(options.width), options.windows, options.work)
    figures = {name: _built(options, name) for name in names}
    if not options.build_only:
        tuned = {}
        for name, found in _run(options, "queries", names).items():
            tuned[name] = found.pop("tuned")
            figures[name] |= found
        starts: dict[str, list[float]] = {name: [] for name in names}
        for name in names * options.starts:
            starts[name].append(_seconds(partial(_run, options, "first", [name], setting=tuned[name])))
        for name in names:
            figures[name]["cold start, s"] = statistics.median(starts[name])
            figures[name] |= _run(options, "updates", [name], setting=tuned[name]) | _crashes(options, name)
    columns, rows = _table(figures)
    for row in rows:
        print(" | ".join(str(cell) if isinstance(cell, str) else f"{cell:.4g}" for cell in row))
    if options.out is not None:
        from benchmarks.harness.case import Settings
        from benchmarks.harness.results import build_result, save_result

        settings = Settings(threads=len(os.sched_getaffinity(0)), quick=options.windows < 1_000_000)
        result = build_result("vector_stores", "Vector stores", [], settings)
        save_result(result | {"table": {"columns": columns, "rows": rows}}, options.out)
    return 0


def _table(figures: dict[str, Figures]) -> tuple[list[str], list[list[float | str | None]]]:
    """A column for each store, a row for each figure."""
    rows = list(dict.fromkeys(row for found in figures.values() for row in found))
    return ["", *figures], [[row, *(found.get(row) for found in figures.values())] for row in rows]


def _built(options: argparse.Namespace, name: str) -> Figures:
    """Build a store unless it is built; what that took."""
    folder = _folder(options, name)
    record = folder.with_suffix(".json")
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        found = _run(options, "build", [name])
        found["disk, GB"] = _disk_bytes(folder) / 1e9
        record.write_text(json.dumps(found))
    return dict(json.loads(record.read_text()))


def _build(options: argparse.Namespace) -> Figures:
    from benchmarks.harness.process_memory import status_bytes

    (name,) = options.store
    windows = saved_windows(Vectors(options.width), options.windows, options.work)
    store = open_store(name, _folder(options, name), options.width)
    inserting = _seconds(lambda: insert_all(store, read_blocks(windows)))
    indexing = _seconds(store.build_index)
    memory = status_bytes("VmHWM") / 1e9
    return {"insert, s": inserting, "index, s": indexing, "peak memory of the build, GB": memory}


def _queries(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    vectors = Vectors(options.width)
    windows = saved_windows(vectors, options.windows, options.work)
    # The first half of the queries is for tuning, the second for the figures.
    kinds = {"sound": vectors.sound_queries(2 * options.queries), "text": vectors.text_queries(2 * options.queries)}
    exact = {kind: exact_neighbors(windows, queries, COUNT) for kind, queries in kinds.items()}
    stores = {name: open_store(name, _folder(options, name), options.width) for name in options.store}
    half = slice(None, options.queries)
    tuning = {kind: (queries[half], exact[kind][half]) for kind, queries in kinds.items()}
    settings = {name: _tuned(store, settings_of(name), tuning) for name, store in stores.items()}
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {kind: [] for kind in kinds} for name in stores}
    for number in range(options.queries, 2 * options.queries):
        for kind, queries in kinds.items():
            for name, store in stores.items():
                began = time.perf_counter()
                answer = store.search(queries[number], COUNT, settings[name])
                seconds[name].append(time.perf_counter() - began)
                found[name][kind].append(_padded(answer.keys))
    return {
        name: {
            "tuned": settings[name],
            "setting": str(settings[name] or "default"),
            **{
                f"recall@10, {kind} queries": recall(np.array(found[name][kind]), exact[kind][options.queries :])
                for kind in kinds
            },
            "query p50, ms": 1e3 * float(np.quantile(seconds[name], 0.5)),
            "query p99, ms": 1e3 * float(np.quantile(seconds[name], 0.99)),
        }
        for name in stores
    }


def _tuned(
    store: Store, settings: Sequence[Setting | None], tuning: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Setting | None:
    """The fastest setting with the recall that is wanted on all kinds of queries, or the one with the highest."""
    if len(settings) == 1:
        store.search(next(iter(tuning.values()))[0][0], COUNT)
        return settings[0]
    reached: list[tuple[bool, float, Setting | None]] = []
    for setting in settings:
        lowest, seconds = 1.0, 0.0
        for queries, exact in tuning.values():
            began = time.perf_counter()
            found = np.array([_padded(store.search(query, COUNT, setting).keys) for query in queries])
            seconds += time.perf_counter() - began
            lowest = min(lowest, recall(found, exact))
        reached.append((lowest >= WANTED_RECALL, -seconds if lowest >= WANTED_RECALL else lowest, setting))
    return max(reached, key=lambda row: row[:2])[2]


def _first(options: argparse.Namespace) -> list[int]:
    """The first answer of a process; the vector of the query comes with the process in practice."""
    (name,) = options.store
    query = np.random.default_rng(0).standard_normal(options.width, np.float32)
    query /= np.linalg.norm(query)
    store = open_store(name, _folder(options, name), options.width)
    return store.search(query, COUNT, _setting(options)).keys.tolist()


def _updates(options: argparse.Namespace) -> Figures:
    """Change a copy of a store, so that the store can be measured again."""
    (name,) = options.store
    folder = _folder(options, name)
    copy = folder.with_name(f"{folder.name}-changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    try:
        return _updates_of(open_store(name, copy, options.width), options, _setting(options))
    finally:
        shutil.rmtree(copy)


def _updates_of(store: Store, options: argparse.Namespace, setting: Setting | None) -> Figures:
    new = Vectors(options.width).new_windows(ADDED + CHANGED)
    added, changed = new[:ADDED], new[ADDED:]
    store.search(added[0], COUNT, setting)  # open and warm

    def shown(query: np.ndarray, key: int, *, present: bool = True) -> None:
        found = store.search(query, COUNT, setting)
        best = dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True))
        if (best.get(key, 0.0) >= SAME) != present:
            raise AssertionError(f"window {key} is {'not ' * present}found after a change; the best are {best}")

    def add() -> None:
        store.insert(options.windows, added)
        shown(added[-1], options.windows + ADDED - 1)

    def change() -> None:
        store.replace(range(CHANGED // WINDOWS_OF_RECORDING), changed)
        shown(changed[-1], CHANGED - 1)

    def remove() -> None:
        first = options.windows // WINDOWS_OF_RECORDING
        store.remove(range(first, first + REMOVED // WINDOWS_OF_RECORDING))
        shown(added[-1], options.windows + ADDED - 1, present=False)

    figures: Figures = {"add 1,000 until found, ms": 1e3 * _seconds(add)}
    pending = [_seconds(partial(store.search, query, COUNT, setting)) for query in added[::10]]
    figures["query with 1,000 new, p50, ms"] = 1e3 * statistics.median(pending)
    figures["change 100 until found, ms"] = 1e3 * _seconds(change)
    figures["remove 1,000 until gone, ms"] = 1e3 * _seconds(remove)
    figures["bring the index up to date, s"] = _seconds(store.update_index)
    shown(changed[0], 0)
    if len(store.keys()) != options.windows:
        raise AssertionError(f"{len(store.keys())} windows after the changes instead of {options.windows}")
    return figures


def _crashes(options: argparse.Namespace, name: str) -> Figures:
    """Kill a bulk insert again and again, each time into an empty store, and look at what is there."""
    draw = random.Random(0)
    lost = torn = twice = wrong = 0
    for _ in range(options.kills):
        folder = _folder(options, name).with_name("crash")
        shutil.rmtree(folder, ignore_errors=True)
        acknowledged = _killed_insert(options, name, seconds=draw.uniform(0.05, 2.0))
        keys = open_store(name, folder, options.width).keys()
        lost += int(np.isin(np.arange(acknowledged), keys, invert=True).sum())
        torn += int((np.unique(np.unique(keys) // WINDOWS_OF_RECORDING, return_counts=True)[1] != 20).sum())
        twice += len(keys) - len(np.unique(keys))
        total = len(keys) + 5 * COMMIT
        _run(options, "insert", [name], windows=total)
        keys = open_store(name, folder, options.width).keys()
        wrong += len(set(keys.tolist()) ^ set(range(total))) + len(keys) - len(np.unique(keys))
        shutil.rmtree(folder)
    return {
        f"{options.kills} kills: acknowledged windows lost": lost,
        "recordings torn": torn,
        "windows twice": twice,
        "missing or twice after going on": wrong,
    }


def _killed_insert(options: argparse.Namespace, name: str, seconds: float) -> int:
    """Kill an insert `seconds` after its first commit; returns how many windows were acknowledged until then."""
    acknowledged = 0
    command = _command(options, "insert", [name], windows=1_000_000)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        time.sleep(seconds)
        process.kill()
        for line in process.stdout:
            acknowledged = int(line) if line.endswith("\n") else acknowledged
    return acknowledged


def _insert(options: argparse.Namespace) -> int:
    """Insert what the store of the crash drill lacks, and say after each commit how many windows it has."""
    (name,) = options.store
    store = open_store(name, _folder(options, name).with_name("crash"), options.width)
    have = len(store.keys())
    block = Vectors(options.width).new_windows(20_000)
    for first in range(have, options.windows, COMMIT):
        rows = np.arange(first, min(first + COMMIT, options.windows)) % len(block)
        store.insert(first, block[rows])
        print(first + len(rows), flush=True)
    return len(store.keys())


_CHILDREN: dict[str, Callable[[argparse.Namespace], Any]] = {
    "build": _build,
    "queries": _queries,
    "first": _first,
    "updates": _updates,
    "insert": _insert,
}


def _run(
    options: argparse.Namespace,
    child: str,
    names: Sequence[str],
    *,
    windows: int | None = None,
    setting: Sequence[int] | None = None,
) -> Any:
    """Run a part of the benchmark in a process of its own; returns what its last line says."""
    command = _command(options, child, names, windows=windows)
    if setting is not None:
        command += ["--setting", *map(str, setting)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _command(options: argparse.Namespace, child: str, names: Sequence[str], *, windows: int | None) -> list[str]:
    sizes = {"--windows": windows or options.windows, "--width": options.width, "--queries": options.queries}
    command = [sys.executable, "-m", "benchmarks.vector_stores", str(options.work.absolute()), "--child", child]
    command += [str(part) for pair in sizes.items() for part in pair]
    return command + [part for name in names for part in ("--store", name)]


def _setting(options: argparse.Namespace) -> Setting | None:
    return None if options.setting is None else Setting(*options.setting)


def _folder(options: argparse.Namespace, name: str) -> Path:
    kind = (NAMES[name] or "library").lower()
    return Path(options.work) / f"{kind}-{options.windows}"


def _padded(keys: np.ndarray) -> np.ndarray:
    """Exactly `COUNT` keys; -1 where a store found fewer."""
    return np.pad(keys[:COUNT], (0, COUNT - len(keys[:COUNT])), constant_values=-1)


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
