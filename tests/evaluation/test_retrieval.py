from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.evaluation.retrieval import embedding_retrieval_metrics, format_retrieval, retrieval_metrics
from tests.oracles import retrieval as oracle


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    n_audio = draw(st.integers(1, 9))
    text_to_audio = draw(st.lists(st.integers(0, n_audio - 1), min_size=1, max_size=25))
    # Few distinct values: ties are the rule.
    value = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]) if draw(st.booleans()) else st.floats(-1, 1, width=32)
    row = st.lists(value, min_size=len(text_to_audio), max_size=len(text_to_audio))
    return draw(st.lists(row, min_size=n_audio, max_size=n_audio)), text_to_audio


@settings(max_examples=150, deadline=None)
@given(rankings(), st.integers(1, 7))
def test_metrics_equal_those_of_sorting_each_query(
    ranking: tuple[list[list[float]], list[int]], chunk_size: int
) -> None:
    similarity, text_to_audio = ranking
    expected = oracle.retrieval_metrics(similarity, text_to_audio)
    metrics = retrieval_metrics(torch.tensor(similarity), torch.tensor(text_to_audio), chunk_size=chunk_size)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_embeddings_give_the_metrics_of_their_similarity_matrix_whatever_the_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    audio = torch.nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    text_to_audio = torch.randint(40, (130,), generator=generator)
    text = torch.nn.functional.normalize(audio[text_to_audio] + torch.randn(130, 16, generator=generator), dim=1)
    expected = oracle.retrieval_metrics((audio.double() @ text.double().T).float().tolist(), text_to_audio.tolist())
    for chunk_size in (1, 7, 1000):
        metrics = embedding_retrieval_metrics(audio, text, text_to_audio, chunk_size=chunk_size)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["t2a_r1"] < 1


def test_perfect_embeddings_score_one() -> None:
    text_to_audio = torch.tensor([0, 0, 0, 1, 2, 2])
    metrics = embedding_retrieval_metrics(torch.eye(3), torch.eye(3)[text_to_audio], text_to_audio)
    for name in ("t2a_r1", "t2a_map10", "a2t_r1", "a2t_map10", "t2a_median_rank", "a2t_median_rank"):
        assert metrics[name] == 1.0


@pytest.mark.parametrize("width", [3, 17, 768])
def test_a_constant_embedding_ranks_last(width: int) -> None:
    constant = torch.nn.functional.normalize(torch.linspace(-1, 1, width), dim=0)
    text_to_audio = torch.arange(23).repeat_interleave(5)
    metrics = embedding_retrieval_metrics(constant.expand(23, -1), constant.expand(115, -1), text_to_audio)
    assert metrics["t2a_median_rank"] == 23
    assert metrics["a2t_median_rank"] == 111  # the first of five own captions behind 110 others
    assert metrics["t2a_r10"] == metrics["a2t_r10"] == metrics["t2a_map10"] == metrics["a2t_map10"] == 0


def test_average_precision_counts_all_captions_of_a_clip() -> None:
    # The clip's captions stand at ranks 2 and 4: (1/2 + 2/4) / 2.
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.0, 0.0, 0.0, 0.0]])
    metrics = retrieval_metrics(similarity[:, [1, 3, 0, 2]], torch.tensor([0, 0, 1, 1]))
    first_clip = 0.5
    second_clip = (1 / 3 + 2 / 4) / 2  # all equal: both foreign captions stand before both own ones
    assert metrics["a2t_map10"] == pytest.approx((first_clip + second_clip) / 2)


def test_a_clip_without_captions_is_a_distractor_and_no_query() -> None:
    similarity = torch.tensor([[0.1], [0.9]])
    metrics = retrieval_metrics(similarity, torch.tensor([0]))
    assert metrics["t2a_median_rank"] == 2
    assert metrics["a2t_r1"] == 1


def test_chance_is_what_random_rankings_score() -> None:
    shuffler = random.Random(0)
    text_to_audio = [0, 0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 5, 6]
    totals: dict[str, float] = {}
    rounds = 3000
    for _ in range(rounds):
        similarity = [[shuffler.random() for _ in text_to_audio] for _ in range(7)]
        for name, value in oracle.retrieval_metrics(similarity, text_to_audio).items():
            totals[name] = totals.get(name, 0.0) + value / rounds
    metrics = retrieval_metrics(torch.zeros(7, len(text_to_audio)), torch.tensor(text_to_audio))
    for name in (f"{way}_{metric}" for way in ("t2a", "a2t") for metric in ("r1", "r5", "r10", "map10")):
        assert metrics[f"chance_{name}"] == pytest.approx(totals[name], abs=0.01)


@pytest.mark.parametrize(
    ("similarity", "text_to_audio", "message"),
    [
        (torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), "nothing to rank"),
        (torch.zeros(3, 0), torch.zeros(0, dtype=torch.int64), "nothing to rank"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"\[n_audio, n_text\]"),
        (torch.zeros(3, 2), torch.tensor([0, 3]), r"text_to_audio\[1\] is 3; there are 3 clips"),
        (torch.zeros(3, 2), torch.tensor([-1, 0]), r"text_to_audio\[0\] is -1"),
        (torch.zeros(3, 2), torch.tensor([0]), "there are 2 captions"),
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0]), "integers"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([0, 1]), r"similarity\[1\] is not finite"),
    ],
)
def test_what_cannot_be_ranked_is_an_error(similarity: torch.Tensor, text_to_audio: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(similarity, text_to_audio)


def test_embeddings_of_different_width_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"audio has shape \(2, 4\) and text \(2, 5\)"):
        embedding_retrieval_metrics(torch.ones(2, 4), torch.ones(2, 5), torch.tensor([0, 1]))


def test_the_table_is_aligned_and_in_per_cent() -> None:
    table = format_retrieval(retrieval_metrics(torch.eye(4), torch.arange(4)))
    header, text_to_audio, chance, *_ = table.splitlines()
    assert text_to_audio.split() == ["text", "to", "audio", "100.0", "100.0", "100.0", "100.0", "1"]
    assert chance.split()[:2] == ["chance", "25.0"]
    assert header.index("R@1") + 3 == text_to_audio.index("100.0") + 5
