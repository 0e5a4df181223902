from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.evaluation.retrieval import (
    embedding_retrieval_metrics,
    embedding_retrieval_scores,
    format_retrieval,
    normalized_text,
    retrieval_metrics,
)
from tests.oracles import retrieval as oracle


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[float]], list[int], list[str] | None]:
    tied = draw(st.booleans())
    n_audio = draw(st.integers(1, 5 if tied else 12))
    text_to_audio = draw(st.lists(st.integers(0, n_audio - 1), min_size=1, max_size=6 if tied else 25))
    n_text = len(text_to_audio)
    # Either few distinct values, so that most are tied, or all distinct.
    values: st.SearchStrategy[list[int]] = st.permutations(range(n_audio * n_text))
    if tied:
        values = st.lists(st.integers(-1, 1), min_size=n_audio * n_text, max_size=n_audio * n_text)
    flat = [float(value) for value in draw(values)]
    similarity = [flat[start : start + n_text] for start in range(0, len(flat), n_text)]
    captions = st.lists(st.sampled_from("abcd"), min_size=len(text_to_audio), max_size=len(text_to_audio))
    return similarity, text_to_audio, draw(st.none() | captions)


@settings(max_examples=60, deadline=None)
@given(rankings(), st.integers(1, 7))
def test_metrics_equal_the_mean_over_all_orders_of_ties(
    ranking: tuple[list[list[float]], list[int], list[str] | None], chunk_size: int
) -> None:
    similarity, text_to_audio, captions = ranking
    expected = oracle.retrieval_metrics(similarity, text_to_audio, captions)
    metrics = retrieval_metrics(torch.tensor(similarity), torch.tensor(text_to_audio), captions, chunk_size=chunk_size)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_metrics_of_embeddings_equal_those_of_their_similarity_matrix_for_any_chunk_size() -> None:
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
def test_a_constant_embedding_scores_chance(width: int) -> None:
    constant = torch.nn.functional.normalize(torch.linspace(-1, 1, width), dim=0)
    text_to_audio = torch.arange(23).repeat_interleave(5)
    metrics = embedding_retrieval_metrics(constant.expand(23, -1), constant.expand(115, -1), text_to_audio)
    assert metrics["t2a_median_rank"] == 12
    assert metrics["a2t_median_rank"] == pytest.approx(116 / 6)  # the first of five among 115
    assert metrics["t2a_r1"] == pytest.approx(1 / 23)
    for name in (f"{way}_{metric}" for way in ("t2a", "a2t") for metric in ("r1", "r5", "r10", "map10")):
        assert metrics[name] == pytest.approx(metrics[f"chance_{name}"])


def test_identical_clips_share_the_score_of_one() -> None:
    # Five identical clips, each with its own caption: a caption cannot distinguish them.
    audio = torch.eye(3)[[0, 0, 0, 0, 0, 1, 2]]
    metrics = embedding_retrieval_metrics(audio, audio, torch.arange(7))
    assert metrics["t2a_r1"] == metrics["a2t_r1"] == pytest.approx((5 * 1 / 5 + 2) / 7)
    assert metrics["t2a_r5"] == metrics["a2t_r5"] == pytest.approx(1.0)


def test_a_caption_of_several_clips_is_relevant_to_each() -> None:
    # Clips 0 and 1 differ but have the same caption.
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    targets = torch.arange(3)
    metrics = embedding_retrieval_metrics(torch.eye(3), text, targets, ["a dog barks", "a dog barks", "rain"])
    assert metrics["t2a_r1"] == metrics["a2t_r1"] == metrics["t2a_map10"] == metrics["a2t_map10"] == 1.0
    assert metrics["shared_captions"] == 2
    # Without the texts, only the equality of their embeddings is known.
    assert embedding_retrieval_metrics(torch.eye(3), text, targets)["a2t_r1"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="2 captions; there are 3 embeddings"):
        embedding_retrieval_metrics(torch.eye(3), text, targets, ["a", "b"])


def test_average_precision_counts_all_captions_of_a_clip() -> None:
    # The clip's captions have ranks 2 and 4: (1/2 + 2/4) / 2.
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.0, 0.0, 0.0, 0.0]])
    metrics = retrieval_metrics(similarity[:, [1, 3, 0, 2]], torch.tensor([0, 0, 1, 1]))
    first_clip = 0.5
    # All tied: each of four ranks holds a relevant caption with probability 1/2, and then each rank above with 1/3.
    second_clip = sum((1 + (place - 1) / 3) / place for place in range(1, 5)) / 2 / 2
    assert metrics["a2t_map10"] == pytest.approx((first_clip + second_clip) / 2)


def test_a_clip_without_captions_is_a_distractor_and_not_a_query() -> None:
    similarity = torch.tensor([[0.1], [0.9]])
    metrics = retrieval_metrics(similarity, torch.tensor([0]))
    assert metrics["t2a_median_rank"] == 2
    assert metrics["a2t_r1"] == 1


def test_chance_is_the_mean_score_of_random_rankings() -> None:
    # All similarities are equal, and the scores of ties are means over all orders: see the test against the oracle.
    text_to_audio = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 5, 6] + 12 * [7])
    metrics = retrieval_metrics(torch.zeros(30, len(text_to_audio)), text_to_audio)
    for name in (f"{way}_{metric}" for way in ("t2a", "a2t") for metric in ("r1", "r5", "r10", "map10")):
        assert metrics[f"chance_{name}"] == pytest.approx(metrics[name], abs=1e-12)
    assert metrics["chance_t2a_r5"] == pytest.approx(5 / 30)


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
def test_invalid_input_is_an_error(similarity: torch.Tensor, text_to_audio: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(similarity, text_to_audio)


def test_embeddings_of_different_width_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"audio has shape \(2, 4\) and text \(2, 5\)"):
        embedding_retrieval_metrics(torch.ones(2, 4), torch.ones(2, 5), torch.tensor([0, 1]))


def test_the_table_is_aligned_and_in_percent() -> None:
    table = format_retrieval(retrieval_metrics(torch.eye(4), torch.arange(4)))
    header, text_to_audio, chance, *_ = table.splitlines()
    assert text_to_audio.split() == ["text", "to", "audio", "100.0", "100.0", "100.0", "100.0", "1"]
    assert chance.split()[:2] == ["chance", "25.0"]
    assert header.index("R@1") + 3 == text_to_audio.index("100.0") + 5


def test_captions_that_differ_in_case_punctuation_and_spacing_are_the_same() -> None:
    captions = ["A dog barks.", "a dog  barks", "Rain!", "a cat"]
    # Every text points away from its own clip, to the other one of the same caption.
    metrics = embedding_retrieval_metrics(torch.eye(4), torch.eye(4)[[1, 0, 2, 3]], torch.arange(4), captions)
    assert metrics["t2a_r1"] == metrics["a2t_r1"] == 1.0
    assert metrics["shared_captions"] == 2
    assert normalized_text("2 Żubry, AND Éclairs…") == "2 żubry and éclairs"
    assert normalized_text("...") == "..."


def test_scores_have_the_same_bits_in_any_order_of_the_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    audio, text = torch.nn.functional.normalize(torch.randn(2, 300, 4, generator=generator), dim=2)
    metrics = embedding_retrieval_metrics(audio, text, torch.arange(300))
    for _ in range(3):
        order = torch.randperm(300, generator=generator)
        assert embedding_retrieval_metrics(audio[order], text[order], torch.arange(300)) == metrics


def test_intervals_resample_the_captions_of_a_clip_together() -> None:
    generator = torch.Generator().manual_seed(0)
    audio = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    noise = 0.3 * torch.randn(40, 8, generator=generator)
    text = torch.nn.functional.normalize(audio + noise, dim=1)
    once = embedding_retrieval_scores(audio, text, torch.arange(40))
    five = embedding_retrieval_scores(audio, text.repeat_interleave(5, 0), torch.arange(40).repeat_interleave(5))
    metrics, intervals = once.metrics(), once.intervals(300)
    for name in ("t2a_r1", "t2a_map10", "t2a_median_rank"):
        assert five.intervals(300)[name] == pytest.approx(intervals[name])
        assert intervals[name][0] <= metrics[name] <= intervals[name][1]
    table = format_retrieval(metrics, intervals).splitlines()
    assert table[2].split()[:3] == ["95", "%", "interval"]
