"""The model of a library: told by its weights, also after its folder was moved."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slap_fast.config import saved_files
from slap_fast.library import identity
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.library import Library
from tests.library.small_library import index_files, sound
from tests.models.saved import tiny_slap


def test_a_model_that_was_moved_is_named_once_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    index_files(folder, tiny_slap(), {b"a.wav": sound(1, 440)}, files=tmp_path / "files")
    (tmp_path / "model").rename(tmp_path / "moved")
    with Library(folder) as library:
        assert library.identity.name == str(tmp_path / "model")
        with pytest.raises(LibraryError, match=r"was at .*model, which no longer exists; .*slap-fast index .* --model"):
            library.search(audio=sound(1, 440), sampling_rate=16_000)
    with Library(folder, model=tmp_path / "moved") as library:
        assert len(library.search(audio=sound(1, 440), sampling_rate=16_000)) == 1
    with Library(folder) as library:
        assert library.identity.name == str(tmp_path / "moved")
        assert len(library.search("a tone")) == 1


def test_a_digest_is_read_again_when_the_weights_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    reads: list[Path] = []

    def read(folder: Path) -> str | None:
        reads.append(folder)
        return saved_files.weights_digest(folder)

    monkeypatch.setattr(identity, "weights_digest", read)
    first = ModelIdentity.of(str(tmp_path))
    assert ModelIdentity.of(str(tmp_path)) == first
    assert len(reads) == 1
    status = weights.stat()
    weights.with_suffix(".new").write_bytes(b"two")  # of the same size and time
    os.utime(weights.with_suffix(".new"), ns=(status.st_atime_ns, status.st_mtime_ns))
    weights.with_suffix(".new").replace(weights)
    assert ModelIdentity.of(str(tmp_path)).weights != first.weights
    weights.unlink()
    with pytest.raises(LibraryError, match=r"has no model\.safetensors"):
        ModelIdentity.of(str(tmp_path))
