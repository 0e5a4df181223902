"""Embedding files: names round-trip, and writes are atomic under failures and concurrent writers."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from slap_fast.commands.embedding_files import SUFFIXES, write_embeddings
from tests.commands.stored_embeddings import read_embeddings


def vectors(writer: int, rows: int = 200) -> tuple[list[str], np.ndarray]:
    return [f"{writer}-{row}" for row in range(rows)], np.full((rows, 8), float(writer), np.float32)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_names_round_trip(tmp_path: Path, suffix: str) -> None:
    names = ["a\nb.wav", "grün.wav", "\udcff.wav", "x\\u0041", "", '"']
    write_embeddings(tmp_path / f"x{suffix}", names, np.eye(6, dtype=np.float32))
    found, embeddings = read_embeddings(tmp_path / f"x{suffix}")
    assert found == names
    np.testing.assert_array_equal(embeddings, np.eye(6))
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


def test_numpy_reads_the_matrix_of_both_of_its_formats(tmp_path: Path) -> None:
    names, embeddings = vectors(3)
    for suffix in (".npy", ".npz"):
        write_embeddings(tmp_path / f"x{suffix}", names, embeddings)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), embeddings)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), embeddings)
    assert np.load(tmp_path / "x.npz")["names"].tolist() == names


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_earlier_file_unchanged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_embeddings(path, *vectors(1))
    before = path.read_bytes()
    with largest_file(5000), pytest.raises(OSError, match=r"File too large.*x\.(npz|npy|safetensors)"):
        write_embeddings(path, *vectors(2))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_concurrent_writers_never_mix_names_and_embeddings(tmp_path: Path, suffix: str) -> None:
    path, writing = tmp_path / f"x{suffix}", threading.Event()
    write_embeddings(path, *vectors(0))

    def write(writer: int) -> None:
        for _ in range(15):
            write_embeddings(path, *vectors(writer))
        writing.set()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in (1, 2)]
    for thread in threads:
        thread.start()
    reads = 0
    while not writing.is_set() or reads < 5:
        names, embeddings = read_embeddings(path)
        writer = float(names[0].partition("-")[0])
        assert len(names) == 200
        assert (embeddings == writer).all()
        reads += 1
    for thread in threads:
        thread.join()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
