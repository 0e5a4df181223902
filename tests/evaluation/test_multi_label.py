from __future__ import annotations

import numpy as np
import pytest
import torch

from slap_fast.evaluation.bootstrap import draw_groups
from slap_fast.evaluation.multi_label import d_prime, multi_label_scores

metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities with many ties, and labels; class 3 has no clip."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(120, 5, generator=generator) < 0.15
    targets[:, 3] = False
    similarity = torch.randn(120, 5, generator=generator) + targets
    return (4 * similarity).round() / 4, targets


def test_average_precision_and_auroc_are_those_of_scikit_learn(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    similarity, targets = scored
    scores = multi_label_scores(similarity, targets)
    for name in (0, 1, 2, 4):
        truth, values = targets[:, name].numpy(), similarity[:, name].numpy()
        assert scores.average_precision[name] == pytest.approx(metrics.average_precision_score(truth, values))
        assert scores.auroc[name] == pytest.approx(metrics.roc_auc_score(truth, values))
    summary = scores.metrics()
    assert summary["map"] == pytest.approx(np.delete(scores.average_precision, 3).mean())
    assert summary["classes_without_clips"] == 1
    assert np.isnan(scores.average_precision[3])


def test_intervals_are_those_of_scoring_each_resample(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    similarity, targets = (one.numpy() for one in scored)
    values = []
    for drawn in next(draw_groups(120, 100, 0)):
        present = [name for name in range(5) if targets[drawn, name].any()]
        precision = metrics.average_precision_score
        values.append(np.mean([precision(targets[drawn, name], similarity[drawn, name]) for name in present]))
    scores = multi_label_scores(*scored)
    centered = np.array(values) - np.mean(values) + scores.metrics()["map"]
    assert scores.intervals(100)["map"] == pytest.approx(tuple(np.quantile(centered, [0.025, 0.975])))


def test_intervals_of_a_nearly_perfect_ranking_end_at_1() -> None:
    targets = (torch.arange(60) < 6).unsqueeze(1)
    similarity = targets.double()
    similarity[0], similarity[6:15] = 0.5, 0.7
    bounds = multi_label_scores(similarity, targets).intervals(200)
    assert (bounds["map"][1], bounds["auroc"][1]) == (1, 1)


def test_constant_similarities_score_chance() -> None:
    targets = torch.arange(40).unsqueeze(1) < torch.tensor([4, 20])
    summary = multi_label_scores(torch.zeros(40, 2), targets).metrics()
    assert summary["map"] == summary["chance_map"] == pytest.approx(0.3)
    assert summary["auroc"] == 0.5
    assert summary["d_prime"] == 0


def test_d_prime_is_the_distance_of_two_normal_distributions() -> None:
    # Two normal distributions of variance 1 at distance 1 have the AUROC Phi(1 / sqrt(2)).
    assert d_prime(0.7602499389065233) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("similarity", "targets", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, 2), "both must be"),
        (torch.zeros(3, 2), torch.zeros(3, 3), "both must be"),
        (torch.full((1, 2), torch.nan), torch.ones(1, 2), r"similarity\[0\] is not finite"),
        (torch.zeros(3, 2), torch.zeros(3, 2), "no clip has a class"),
    ],
)
def test_invalid_input_is_an_error(similarity: torch.Tensor, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_label_scores(similarity, targets)
