"""`python -m benchmarks.library_search WORK`: queries of a sound library at its default, against other ways.

All peers get the windows of `benchmarks/library_vectors.py` and the same queries by sound and by text, one at a time,
in turns. HNSW takes an hour to build for 1 M windows on two cores, so the peers with it are measured again on fewer.
Memory is what a peer adds to the process for good, in anonymous and mapped pages that were read.

- exact, NumPy: matrix product and `argpartition`.
- sentence-transformers: `semantic_search` on a torch tensor.
- FAISS flat: `IndexFlatIP`, exact. FAISS HNSW: `IndexHNSWFlat`, M = 32, efConstruction = 80, efSearch = 128.
- slap-fast: `VectorIndex` on the database, with the place and recording of each result, as `Library.search` looks them
  up.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.process_memory import status_bytes
from benchmarks.library_vectors import Vectors, exact_neighbors, read_blocks, recall, saved_windows
from benchmarks.vector_store_peers import SoundLibrary, insert_all

COUNT = 10  # results of a query
HNSW_WINDOWS = 200_000
COLUMNS = ["windows and peer", "build, s", "memory, GB", "p50, ms", "p99, ms", "recall@10, sound", "recall@10, text"]

Search = Callable[[np.ndarray], np.ndarray]  # [D] float32 to [10] int64, best first


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.library_search", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for vectors and libraries; what is there is used again")
    parser.add_argument("--windows", type=int, default=1_000_000, help="multiple of 20 (default: %(default)s)")
    parser.add_argument("--hnsw-windows", type=int, default=HNSW_WINDOWS, help="multiple of 20 (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder to write the table to, as a result of this benchmark")
    options = parser.parse_args(argv)
    rows: list[list[str | float]] = []
    print(" | ".join(COLUMNS))
    sizes = {options.windows: PEERS, options.hnsw_windows: PEERS | {"FAISS HNSW": _hnsw}}
    for windows, peers in sizes.items():
        rows += (new := _measured(options, windows, peers))
        for row in new:
            print(f"{row[0]} | {' | '.join(f'{value:.4g}' for value in row[1:])}", flush=True)
    if options.out is not None:
        from benchmarks.harness.case import Settings
        from benchmarks.harness.results import build_result, save_result

        settings = Settings(threads=_threads(), quick=options.windows < 1_000_000)
        result = build_result("library_search", "Queries of a sound library", [], settings)
        save_result(result | {"table": {"columns": COLUMNS, "rows": rows}}, options.out)
    return 0


def _measured(
    options: argparse.Namespace, count: int, peers: dict[str, Callable[[np.ndarray, Path], Search]]
) -> list[list[str | float]]:
    """A row for each peer."""
    for package in ("faiss", "sentence_transformers.util"):  # an import is no part of a build
        importlib.import_module(package)
    vectors = Vectors(options.width)
    windows = saved_windows(vectors, count, options.work)
    kinds = {"sound": vectors.sound_queries(options.queries), "text": vectors.text_queries(options.queries)}
    exact = {kind: exact_neighbors(windows, queries, COUNT) for kind, queries in kinds.items()}
    searches: dict[str, Search] = {}
    build: dict[str, float] = {}
    memory: dict[str, float] = {}
    for name, peer in peers.items():
        gc.collect()
        before, began = status_bytes("VmRSS"), time.perf_counter()
        searches[name] = peer(windows, options.work)
        build[name] = time.perf_counter() - began
        searches[name](kinds["sound"][0])
        memory[name] = (status_bytes("VmRSS") - before) / 1e9
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {kind: [] for kind in kinds} for name in peers}
    for number in range(options.queries):
        for kind, queries in kinds.items():
            for name, search in searches.items():
                began = time.perf_counter()
                best = search(queries[number])
                seconds[name].append(time.perf_counter() - began)
                found[name][kind].append(best)
    return [
        [
            f"{count:,}, {name}",
            build[name],
            memory[name],
            *(1e3 * float(np.quantile(seconds[name], share)) for share in (0.5, 0.99)),
            *(recall(np.array(found[name][kind]), exact[kind]) for kind in kinds),
        ]
        for name in peers
    ]


def _numpy(windows: np.ndarray, work: Path) -> Search:
    matrix = _in_memory(windows)

    def search(query: np.ndarray) -> np.ndarray:
        scores = matrix @ query
        best = np.argpartition(-scores, COUNT)[:COUNT]
        return best[np.argsort(-scores[best])]

    return search


def _sentence_transformers(windows: np.ndarray, work: Path) -> Search:
    import torch
    from sentence_transformers.util import dot_score, semantic_search

    corpus = torch.from_numpy(_in_memory(windows))

    def search(query: np.ndarray) -> np.ndarray:
        (hits,) = semantic_search(
            torch.from_numpy(query)[None], corpus, top_k=COUNT, corpus_chunk_size=len(corpus), score_function=dot_score
        )
        return np.array([hit["corpus_id"] for hit in hits])

    return search


def _flat(windows: np.ndarray, work: Path) -> Search:
    import faiss

    index = faiss.IndexFlatIP(windows.shape[1])
    for block in read_blocks(windows):
        index.add(block)
    return lambda query: index.search(query[None], COUNT)[1][0]


def _hnsw(windows: np.ndarray, work: Path) -> Search:
    import faiss

    index = faiss.IndexHNSWFlat(windows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 80, 128
    for block in read_blocks(windows):
        index.add(block)
    return lambda query: index.search(query[None], COUNT)[1][0]


def _slap_fast(windows: np.ndarray, work: Path) -> Search:
    """The library as it is on disk; its build time is there if it was made now."""
    folder = work / f"library-{len(windows)}"
    made = not folder.exists()
    store = SoundLibrary(folder, windows.shape[1])
    if made:
        insert_all(store, read_blocks(windows))
        store.build_index()
    return lambda query: store.search(query, COUNT).keys


def _in_memory(windows: np.ndarray) -> np.ndarray:
    matrix = np.empty(windows.shape, np.float32)
    begin = 0
    for block in read_blocks(windows):
        matrix[begin : begin + len(block)] = block
        begin += len(block)
    return matrix


def _threads() -> int:
    return len(os.sched_getaffinity(0))


PEERS: dict[str, Callable[[np.ndarray, Path], Search]] = {
    "exact, NumPy": _numpy,
    "sentence-transformers": _sentence_transformers,
    "FAISS flat": _flat,
    "slap-fast": _slap_fast,
}


if __name__ == "__main__":
    raise SystemExit(main())
