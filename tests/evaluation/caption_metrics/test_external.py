"""METEOR, SPICE, SPIDEr and FENSE: with stand-ins for Java and the models, and the reasons where they are missing."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from slap_fast.evaluation.caption_metrics import caption_metrics, fense_metric, java_metrics

GENERATED = ["a dog barks", "rain falls", "a bell"]
REFERENCES = [["a dog is barking", "a dog"], ["rain"], ["a bell rings"]]


def test_metrics_that_cannot_be_computed_have_a_reason_and_no_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FENSE_DATA", str(tmp_path))
    metrics = caption_metrics(GENERATED, REFERENCES)
    assert set(metrics.unavailable) == {"meteor", "spice", "spider", "fense"}
    assert not set(metrics.scores) & set(metrics.unavailable)
    assert "no `java` command" in metrics.unavailable["meteor"]
    assert metrics.unavailable["spider"].endswith("see spice")
    assert f"run hf download {fense_metric.SENTENCE_MODEL}" in metrics.unavailable["fense"]
    monkeypatch.setattr(java_metrics, "java_command", lambda: "java")
    with pytest.raises(java_metrics.UnavailableError, match=r"it needs stanford-corenlp-3.6.0.jar in .*spice/lib: run"):
        java_metrics.spice([["a"]], [[["a"]]])
    monkeypatch.setattr(java_metrics, "find_spec", lambda name: None)
    with pytest.raises(java_metrics.UnavailableError, match="it needs pycocoevalcap: pip install"):
        java_metrics.meteor([["a"]], [[["a"]]])
    assert caption_metrics(GENERATED, REFERENCES, external=False).unavailable == {}


STAND_IN = """#!/usr/bin/env python3
import json, sys
if "-stdio" in sys.argv:
    asked = [sys.stdin.readline().strip()]
    while asked[-1].startswith("SCORE"):
        print(len(asked), flush=True)
        asked.append(sys.stdin.readline().strip())
    assert asked == ["SCORE ||| a dog is barking ||| a dog ||| a dog barks", "SCORE ||| rain ||| rain falls",
        "SCORE ||| a bell rings ||| a bell", "EVAL ||| 1 ||| 2 ||| 3"], asked
    print(0.4, 0.5, 0.7, 0.53, sep=chr(10), flush=True)
    sys.stdin.readline()
given, result = sys.argv[4], sys.argv[sys.argv.index("-out") + 1]
clips = json.load(open(given))
assert clips[0] == {"image_id": 0, "test": "a dog barks", "refs": ["a dog is barking", "a dog"]}, clips[0]
scores = [{"image_id": c["image_id"], "scores": {"All": {"f": 0.1 * (c["image_id"] + 1)}}} for c in clips]
json.dump(scores[::-1], open(result, "w"))
print("Parsing reference captions")
"""


@pytest.fixture
def java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A `java` command to be written, and a folder of pycocoevalcap with the parser of SPICE."""
    (tmp_path / "spice/lib").mkdir(parents=True)
    (tmp_path / "meteor").mkdir()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "spice/lib" / name).touch()
    monkeypatch.setattr(java_metrics, "_require_java", lambda: tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program = tmp_path / "java"
    program.touch(mode=0o755)
    return program


def test_java_programs_score_each_clip_and_spider_is_the_mean_of_spice_and_cider_d(
    java: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    java.write_text(STAND_IN)
    metrics = caption_metrics(GENERATED, REFERENCES)
    assert (metrics.scores["meteor"], metrics.per_clip["meteor"]) == (0.53, [0.4, 0.5, 0.7])
    assert metrics.per_clip["spice"] == pytest.approx([0.1, 0.2, 0.3])
    assert metrics.scores["spider"] == pytest.approx((metrics.scores["cider_d"] + 0.2) / 2)
    assert capfd.readouterr().out == "", "the output of a command is its own"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo 'InaccessibleObjectException' >&2; exit 1", "SPICE's Java program failed: InaccessibleObjectException"),
        ("exit 0", "the result of SPICE's Java program cannot be read"),
    ],
)
def test_a_failure_of_java_is_a_reason(java: Path, program: str, reason: str) -> None:
    java.write_text(f"#!/bin/sh\n{program}\n")
    metrics = caption_metrics(GENERATED, REFERENCES)
    assert "spice" not in metrics.scores
    assert metrics.unavailable["spice"].startswith(reason)
    assert "meteor" not in metrics.scores
    assert metrics.unavailable["meteor"].startswith("METEOR's Java program, which needs 2 GB of memory, failed: ")


def test_fense_is_the_similarity_with_a_penalty_for_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(0)
    words = sorted(
        {word for text in [*GENERATED, *(r for several in REFERENCES for r in several)] for word in text.split()}
    )
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    bert = BertModel(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    bert.save_pretrained(tmp_path / "bert")
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    embedder = Transformer(str(tmp_path / "bert"))
    sentences = SentenceTransformer(modules=[embedder, Pooling(embedder.get_word_embedding_dimension())], device="cpu")
    sentences.save(str(tmp_path / "sentences"))
    weights: dict[str, Any] = {f"encoder.{name}": value for name, value in bert.state_dict().items()}
    weights |= {"clf.weight": torch.zeros(6, 16), "clf.bias": torch.tensor([0.0] * 5 + [9.0])}
    monkeypatch.setenv("FENSE_DATA", str(tmp_path))
    monkeypatch.setattr(fense_metric, "SENTENCE_MODEL", str(tmp_path / "sentences"))
    path = tmp_path / fense_metric.DETECTOR

    def save() -> None:
        torch.save({"model_type": str(tmp_path / "bert"), "num_classes": 6, "state_dict": weights}, path)
        monkeypatch.setattr(fense_metric, "DETECTOR_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())

    save()
    penalized = fense_metric.fense(GENERATED, REFERENCES)
    weights["clf.bias"] = torch.tensor([9.0] * 5 + [1.0])  # a probability of 0.73 is below the threshold
    save()
    fluent = fense_metric.fense(GENERATED, REFERENCES)
    embedded = {text: sentences.encode(text, normalize_embeddings=True) for text in [*GENERATED, *REFERENCES[0]]}
    expected = np.mean([embedded[GENERATED[0]] @ embedded[text] for text in REFERENCES[0]])
    assert fluent[0] == pytest.approx(expected, abs=1e-5)
    assert penalized == pytest.approx([0.1 * value for value in fluent])
    path.write_bytes(path.read_bytes() + b"x")
    assert "is not the published file" in caption_metrics(GENERATED, REFERENCES).unavailable["fense"]
    assert json.dumps(fluent)
