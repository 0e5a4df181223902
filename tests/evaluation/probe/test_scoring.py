"""Probe scores on features whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from slap_fast.data.labeled import LabeledFile, LabeledSet, LabelError
from slap_fast.evaluation.probe.classifiers import LinearProbe, neighbor_scores
from slap_fast.evaluation.probe.scoring import probe

RNG = np.random.default_rng(0)


def make_set(labels: list[tuple[int, ...]], classes: int, *, folds: int = 3) -> LabeledSet:
    files = [LabeledFile(Path(f"{at}.wav"), label, fold=at % folds + 1) for at, label in enumerate(labels)]
    return LabeledSet("set", files, [f"class {at}" for at in range(classes)], any(len(one) != 1 for one in labels))


def test_scores_are_means_over_folds_with_an_interval_chance_and_confusion() -> None:
    labels = RNG.integers(0, 4, 121)
    features = np.eye(8, dtype=np.float32)[labels] + 0.3 * RNG.standard_normal((121, 8), dtype=np.float32)
    # Clip 7 could not be read; all clips of the last class are in the features of another one.
    features[labels == 3] = features[labels == 0][0] + 0.5 * RNG.standard_normal(
        (sum(labels == 3), 8), dtype=np.float32
    )
    clips = np.delete(np.arange(121), 7)
    result = probe(features[clips], make_set([(int(one),) for one in labels], 5), clips, resamples=200)
    assert (result.metric, result.clips, result.chance) == ("accuracy", 120, 0.2)
    assert result.majority == np.bincount(labels[clips]).max() / 120
    for scores in (result.linear, result.knn):
        assert list(scores.per_split) == ["fold 1", "fold 2", "fold 3"]
        assert scores.mean == pytest.approx(np.mean(list(scores.per_split.values())))
        assert scores.std == pytest.approx(np.std(list(scores.per_split.values()), ddof=1))
        assert scores.interval[0] < scores.mean < scores.interval[1]
        assert scores.interval[1] - scores.interval[0] < 0.25
        assert scores.per_class["class 1"] > 0.8  # type: ignore[operator]
        assert scores.per_class["class 4"] is None
    confusion = np.array(result.confusion)
    assert confusion.sum(1).tolist() == [*np.bincount(labels[clips], minlength=5)]
    right = sum(share * np.sum((clips % 3) == at) for at, share in enumerate(result.linear.per_split.values()))
    assert confusion.trace() == pytest.approx(right)
    assert "classes without any clip: class 4" in result.warnings


def test_multi_label_sets_are_scored_by_mean_average_precision() -> None:
    weights = RNG.standard_normal((6, 5))
    features = RNG.standard_normal((240, 6)).astype(np.float32)
    targets = features @ weights > 2.0
    targets[:, 4] = RNG.random(240) < 0.1  # not in the features
    labels = [tuple(np.flatnonzero(row).tolist()) for row in targets]
    result = probe(features, make_set(labels, 5), np.arange(240), resamples=100)
    assert (result.metric, result.majority, result.confusion) == ("map", None, None)
    assert result.chance == pytest.approx(targets.mean(0).mean())
    assert all(result.linear.per_class[f"class {at}"] > 0.9 for at in range(4))  # type: ignore[operator]
    assert result.linear.per_class["class 4"] < 0.4  # type: ignore[operator]
    assert result.linear.interval[0] < result.linear.mean < result.linear.interval[1]
    assert result.chance < result.knn.mean < result.linear.mean


def test_a_multi_label_probe_is_a_logistic_regression_of_each_class() -> None:
    features = RNG.standard_normal((300, 5)).astype(np.float32) * [1, 10, 100, 1, 1] + 3
    targets = features @ RNG.standard_normal((5, 3)) + 50 * RNG.standard_normal((300, 3)) > 0
    inner = [(np.arange(200), np.arange(200, 300))]
    fitted = LinearProbe(features, targets, inner, multi_label=True)
    standardized = (features - features.mean(0)) / features.std(0)
    for label in range(3):
        expected = LogisticRegression(C=fitted.strength, tol=1e-8).fit(standardized, targets[:, label])
        np.testing.assert_allclose(
            fitted.scores(features)[:, label], expected.predict_proba(standardized)[:, 1], atol=5e-3
        )


def test_neighbors_vote_by_cosine_similarity() -> None:
    features = np.array([[1, 0], [100, 1], [0, 1], [0.1, 1]], np.float32)
    targets = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], bool)
    votes = neighbor_scores(features, targets, np.array([[0, 7], [3, 0]], np.float32), neighbors=2)
    np.testing.assert_array_equal(votes, [[0.5, 1], [1, 0]])


def test_leaks_and_classes_that_cannot_be_learned_are_named() -> None:
    features = RNG.standard_normal((30, 4)).astype(np.float32)
    features[1] = features[0]  # in folds 1 and 2
    found = make_set([(at // 3 % 2,) if at != 2 else (2,) for at in range(30)], 3)
    warnings = probe(features, found, np.arange(30), neighbors=21, resamples=10).warnings
    assert (
        "fewer clips to train on than 21 neighbors, so all of them vote: fold 1 (20), fold 2 (20), fold 3 (20)"
        in warnings
    )
    assert "2 test clips have an exact copy among the clips to train on, which makes scores too high" in warnings
    assert "fold 3: no clip to train on, so that all test clips are wrong: class 2" in warnings
    one_class = make_set([(int(at % 3 != 0),) for at in range(30)], 2)
    with pytest.raises(LabelError, match="fold 1: the clips to train on are of fewer than two classes"):
        probe(features, one_class, np.arange(30))
