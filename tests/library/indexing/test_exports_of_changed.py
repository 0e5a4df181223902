"""Moments that are exported are those that were found, or named: recordings change after a search."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from slap_fast.library.library import Library
from tests.data.builders import StoredClip, encode, write_dataset
from tests.library.indexing.conftest import Write


def _dataset(folder: Path, *seeds: int) -> None:
    """Prepares a dataset whose clips have the keys clip-0, clip-1, ..."""
    shutil.rmtree(folder, ignore_errors=True)
    noise = [(np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000) * 32767).astype(np.int16) for seed in seeds]
    write_dataset(folder, [StoredClip(encode(pcm), len(pcm), 1, b'{"captions": ["a"]}') for pcm in noise])


def test_a_moment_of_other_audio_is_not_exported(library: Library, sounds: Path, write: Write, tmp_path: Path) -> None:
    data = tmp_path / "data"
    _dataset(data, 1, 2, 3)
    _dataset(tmp_path / "gone", 4)
    touched, rewritten, removed, kept = (write(f"{name}.wav", seed=len(name)) for name in ("a", "bb", "ccc", "dddd"))
    library.add(data, tmp_path / "gone", sounds, workers=0)
    found = library.search("a dog", top=20)
    assert len(found) == 8

    write("bb.wav", seed=9)
    removed.unlink()
    library.update(workers=0)  # knows what is there now; the result is of what was
    write("a.wav", seed=8)
    _dataset(data, 1, 9, 3)  # the same keys
    shutil.rmtree(tmp_path / "gone")
    exported = {one.moment.name: one for one in library.export_moments(found, tmp_path / "cut")}
    reasons = {name: one.reason.partition(";")[0] for name, one in exported.items() if one.path is None}
    since_found, since_indexed = "it has changed since this result was found", "it has changed since it was indexed"
    assert reasons == {
        f"{data}#clip-1": since_indexed,
        f"{tmp_path}/gone#clip-0": f"{tmp_path}/gone: the dataset cannot be read: no such file or directory",
        str(touched): since_indexed,
        str(rewritten): since_found,
        str(removed): since_found,
    }
    assert {name for name, one in exported.items() if one.path} == {f"{data}#clip-0", f"{data}#clip-2", str(kept)}
    assert len(list((tmp_path / "cut").iterdir())) == 3
