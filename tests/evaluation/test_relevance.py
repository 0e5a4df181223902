from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slap_fast.evaluation.relevance import RelevanceError, read_relevance, relevance_scores, relevant_clips


def dcase_average_precision(ranks: list[int], relevant: int, k: int = 16) -> float:
    """As the baseline of DCASE 2025, task 6: `ranks` (from 0) of the relevant clips, divided by their number."""
    ranks = sorted(ranks)
    return sum(place / (rank + 1) for place, rank in enumerate(ranks, 1) if rank < k) / relevant


def test_scores_are_those_of_the_dcase_baseline() -> None:
    generator = torch.Generator().manual_seed(0)
    audio = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(20, 8, generator=generator), dim=1)
    relevant = torch.rand(20, 60, generator=generator) < 0.08
    relevant[torch.arange(20), torch.arange(20)] = True
    order = (queries.double() @ audio.double().T).argsort(1, descending=True).argsort(1)  # rank of each clip
    expected = [
        dcase_average_precision(ranks[wanted].tolist(), int(wanted.sum()))
        for ranks, wanted in zip(order, relevant, strict=True)
    ]
    scores = relevance_scores(audio, queries, relevant, chunk_size=7)
    assert scores.per_query["t2a_map16"].tolist() == pytest.approx(expected)
    first = torch.where(relevant, order, 60).amin(1)
    assert scores.metrics()["t2a_r5"] == pytest.approx(float((first < 5).double().mean()))
    low, high = scores.intervals(200)["t2a_map16"]
    assert low < scores.metrics()["t2a_map16"] < high


def test_a_relevant_clip_that_was_not_read_counts_as_not_found() -> None:
    relevant = torch.tensor([[True, False, True], [False, False, True]])
    scores = relevance_scores(torch.eye(3)[:2], torch.eye(3)[[0, 2]], relevant, [0, 1])
    assert scores.per_query["t2a_map16"].tolist() == [0.5, 0.0]
    assert scores.per_query["t2a_r10"].tolist() == [1.0, 0.0]
    assert scores.counts["relevant_pairs"] == 3


def test_a_constant_embedding_scores_chance() -> None:
    relevant = torch.zeros(3, 30, dtype=torch.bool)
    relevant[:, :3] = True
    metrics = relevance_scores(torch.ones(30, 1), torch.ones(3, 1), relevant).metrics()
    assert metrics["t2a_map16"] == pytest.approx(metrics["chance_t2a_map16"])


def test_the_file_of_dcase_and_one_row_per_pair_and_json_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "query,audio_filenames\nA dog barks.,\"['Santa Motor.wav', 'b.wav']\"\nrain,['b.wav']\n"
    )
    (tmp_path / "b.csv").write_text("caption,file_name\nA dog barks.,Santa Motor.wav\nrain,b.wav\nA dog barks.,b.wav\n")
    (tmp_path / "c.json").write_text(json.dumps({"A dog barks.": ["Santa Motor.wav", "b.wav"], "rain": "b.wav"}))
    for name in ("a.csv", "b.csv", "c.json"):
        sets = read_relevance(tmp_path / name)
        assert sets.queries == ["A dog barks.", "rain"]
        clips = [["Santa_Motor-1", "Santa Motor.wav "], ["x", "eval/b.wav"], ["other"]]
        assert relevant_clips(sets, clips).tolist() == [[True, True, False], [False, True, False]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,file\na,b.wav\n", "it needs one of query, caption, text and one of audio_filenames"),
        ("query,audio_filenames\na,[]\n", r"r.csv:2: the query 'a' has no audio file"),
        ("query,audio_filenames\n,a.wav\n", "r.csv:2: no query"),
        ("query,file_name,score\na,b.wav,0.5\n", "the column 'score' grades relevance"),
        ("query,audio_filenames\n", "it has no query"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(RelevanceError, match=message):
        read_relevance(tmp_path / "r.csv")


def test_files_of_another_dataset_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"rain": ["a.wav"]}')
    sets = read_relevance(tmp_path / "r.json")
    with pytest.raises(RelevanceError, match=r"r.json: query 'rain': 'a.wav' is not a clip of this dataset"):
        relevant_clips(sets, [["b"]])
    with pytest.raises(RelevanceError, match="is the name of 2 clips"):
        relevant_clips(sets, [["a"], ["folder/a"]])
