"""The MTEB model in real tasks of mteb, on local data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pytest
import torch
from mteb.abstasks import AbsTaskRetrieval, AbsTaskZeroShotClassification
from mteb.abstasks.task_metadata import TaskMetadata

from slap_fast.errors import ModelError
from slap_fast.evaluation.leaderboards.mteb import SlapEncoder, slap_meta
from slap_fast.models.slap import SLAP
from tests.data.builders import encode, make_tokenizer
from tests.models.builders import TINY

LABELS = ("a bell rings", "a dog barks")


def metadata(name: str, kind: Any, category: Any) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="local",
        reference=None,
        dataset={"path": "local/none", "revision": "none"},
        type=kind,
        category=category,
        modalities=["audio", "text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )


def clips() -> list[bytes]:
    """Eight FLAC files of different lengths and rates."""
    rng = np.random.default_rng(0)
    return [
        encode((rng.standard_normal(2000 + 900 * at) * 3000).astype(np.int16), 16_000 if at % 2 else 44_100)
        for at in range(8)
    ]


class ZeroShot(AbsTaskZeroShotClassification):
    metadata = metadata("LocalZeroShot", "AudioZeroshotClassification", "a2t")
    input_column_name = "audio"
    label_column_name = "label"

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        columns = {"audio": [{"bytes": one, "path": None} for one in clips()], "label": [at // 4 for at in range(8)]}
        data = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
        self.dataset = datasets.DatasetDict({"test": data})
        self.data_loaded = True

    def get_candidate_labels(self) -> list[str]:
        return list(LABELS)


@pytest.fixture
def model() -> SLAP:
    torch.manual_seed(0)
    model = SLAP(TINY).eval()
    model.tokenizer = make_tokenizer()
    return model


def test_a_zero_shot_task_gives_the_accuracy_of_the_model(model: SLAP) -> None:
    (result,) = mteb.evaluate(SlapEncoder(model), ZeroShot(), cache=None).task_results
    audio, text = model.encode_audio(clips()), model.encode_text(list(LABELS))
    right = (audio @ text.T).argmax(1) == torch.arange(8) // 4
    assert result.scores["test"][0]["accuracy"] == pytest.approx(float(right.float().mean()))


class Retrieval(AbsTaskRetrieval):
    metadata = metadata("LocalRetrieval", "Any2AnyRetrieval", "t2a")

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        corpus = {"id": [f"d{at}" for at in range(8)], "audio": [{"bytes": one, "path": None} for one in clips()]}
        queries = {"id": ["q0", "q1"], "text": list(LABELS)}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": datasets.Dataset.from_dict(corpus).cast_column("audio", datasets.Audio()),
                    "queries": datasets.Dataset.from_dict(queries),
                    "relevant_docs": {f"q{at}": {f"d{4 * at + other}": 1 for other in range(4)} for at in range(2)},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


def test_a_retrieval_task_of_texts_and_clips_gives_the_recall_of_the_model(model: SLAP) -> None:
    (result,) = mteb.evaluate(SlapEncoder(model), Retrieval(), cache=None).task_results
    ranked = (model.encode_text(list(LABELS)) @ model.encode_audio(clips()).T).argsort(1, descending=True)
    hits = [(ranked[query, :5] // 4 == query).float().mean() * 5 / 4 for query in range(2)]
    assert result.scores["test"][0]["recall_at_5"] == pytest.approx(float(sum(hits) / 2), abs=1e-4)


def test_a_model_of_the_hub_is_loaded_by_its_entry(
    model: SLAP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    wanted: list[Any] = []

    def download(name: str, revision: str | None) -> Path:
        wanted.append((name, revision))
        return tmp_path

    monkeypatch.setattr("slap_fast.evaluation.leaderboards.mteb.model_folder", download)
    entry = slap_meta("owner/slap", revision="abc", license="mit")
    assert entry.loader is not None
    loaded = entry.loader(entry.name, revision=entry.revision, device="cpu")
    assert wanted == [("owner/slap", "abc")]
    meta = loaded.mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim) == ("owner/slap", "abc", TINY.audio.width)
    assert meta.modalities == ["audio", "text"]
    assert SlapEncoder.from_folder(tmp_path).mteb_model_meta.name == f"local/{tmp_path.parent.name}-{tmp_path.name}"


def test_a_model_without_a_text_tower_is_an_error(model: SLAP) -> None:
    model.text_encoder = None  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"no text tower.*objectives.contrastive_weight=0"):
        SlapEncoder(model)
