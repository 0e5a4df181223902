"""Exported text tower of a library: the model's embeddings without torch; damage is found, and the model takes over."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slap_fast.library.errors import LibraryError
from slap_fast.library.library import Library
from slap_fast.library.text_tower import export_text_tower, has_text_tower
from slap_fast.models.slap import SLAP
from tests.models.saved import TEXTS, tiny_slap

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def library(empty_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name is not UTF-8."""
    return shutil.copytree(empty_library, tmp_path_factory.mktemp("text") / empty_library.name)


@pytest.fixture(scope="module")
def model(empty_library: Path) -> SLAP:
    return SLAP.from_pretrained(empty_library.parent / "model")


def test_it_is_written_once_and_complete(library: Path, model: SLAP) -> None:
    assert has_text_tower(library)
    assert not export_text_tower(model, library)
    files = sorted(entry.name for entry in (library / "text").iterdir())
    assert files == ["text.json", "text.onnx", "text.onnx.data", "tokenizer.json"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text() | st.sampled_from(["", "a dog " * 50, "[CLS] a [SEP]", "犬が吠える 🐕"]), max_size=3))
def test_any_texts_have_the_embeddings_of_the_model(library: Path, model: SLAP, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    with Library(library) as opened:
        for _ in range(3):  # the second call loads it for many texts
            found = opened.encode_text(texts)
            assert found.shape == (len(texts), model.embedding_dim)
            np.testing.assert_allclose(found, model.encode_text(texts).numpy(), rtol=0, atol=1e-5)
    with Library(library) as opened, pytest.raises(ValueError, match="not valid Unicode"):
        opened.encode_text(["a \udcff"])


def test_a_text_that_is_cut_is_reported_as_by_the_model(
    library: Path, model: SLAP, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a dog", "rain " * 60]
    with Library(library) as opened:
        opened.encode_text(texts)
    model.encode_text(texts)
    mine, models = [record.getMessage() for record in caplog.records]
    assert mine == models
    assert mine.startswith("1 of 2 texts are longer than the model's 40 tokens and were cut")


def test_neither_torch_nor_transformers_is_loaded_and_no_telemetry_begins(library: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from slap_fast import cli\n"
        "assert cli.main(['search', sys.argv[1], 'a dog', '--not', 'rain']) == 1\n"
        "print({'torch', 'transformers', 'huggingface_hub', 'soundfile'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(library)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "set()\n"
    assert not list(tmp_path.iterdir())  # onnxruntime's telemetry keeps the number of its session here
    assert "it has no recordings yet" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "cut", "zeros", "graph", "token", "other model", "description"])
def test_a_damaged_tower_is_never_used(
    library: Path, model: SLAP, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(library, copy)
    text = copy / "text"
    weights = text / "text.onnx.data"
    if damage == "missing":
        shutil.rmtree(text)
        assert not has_text_tower(copy)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "zeros":  # as after a power cut
        weights.write_bytes(bytes(weights.stat().st_size))
    elif damage == "graph":
        path = text / "text.onnx"
        path.write_bytes(path.read_bytes()[::-1])
    elif damage == "token":  # two letters that the text that is embedded for a check does not have are exchanged
        content = (text / "tokenizer.json").read_bytes()
        changed = content.replace(b'"n":', b'"?n":').replace(b'"i":', b'"n":').replace(b'"?n":', b'"i":')
        assert changed != content
        (text / "tokenizer.json").write_bytes(changed)
    else:
        described = json.loads((text / "text.json").read_text())
        described["weights"] = "0" * 32
        (text / "text.json").write_text("{" if damage == "description" else json.dumps(described))
    with caplog.at_level(logging.WARNING), Library(copy) as opened:
        np.testing.assert_array_equal(opened.encode_text(TEXTS), model.encode_text(TEXTS).numpy())
        opened.encode_text(TEXTS)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the whole model is loaded instead; to write it again: slap-fast index" in warning


def test_damage_of_any_weight_is_found_when_the_library_is_indexed(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(library, tmp_path / "copy")
    assert has_text_tower(tmp_path / "copy")
    weights = tmp_path / "copy" / "text" / "text.onnx.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert not has_text_tower(tmp_path / "copy")
    assert "is damaged (text.onnx.data was changed after it was written); it is written again" in caplog.text


def test_a_model_that_was_replaced_is_not_used(tmp_path: Path) -> None:
    tiny_slap(layers=1).save_pretrained(tmp_path / "model")
    Library(tmp_path / "sounds", model=tmp_path / "model").close()
    tiny_slap(layers=2).save_pretrained(tmp_path / "model")
    with Library(tmp_path / "sounds") as opened, pytest.raises(LibraryError, match="its embeddings are of the model"):
        opened.search("a dog")
