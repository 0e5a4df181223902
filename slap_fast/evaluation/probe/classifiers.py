"""Probe classifiers of scikit-learn: regularized logistic regression and k nearest neighbors by cosine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from slap_fast.evaluation.multi_label import multi_label_scores

# Inverse L2 strength of scikit-learn, on standardized features.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ITERATIONS = 200  # a weak regularization that is not better needs thousands
_QUERIES = 1000  # at a time: a neighbor vote has one number per query, neighbor and class


class LinearProbe:
    """Logistic regression: multinomial, or one sigmoid per class.

    Features are standardized by the clips that each fit is trained on. The strength of regularization is the one with
    the best mean score on the inner folds: accuracy or mAP, or with `calibrated` cross-entropy, for probabilities that
    are compared with a threshold. The probe is then fitted to all rows.

    Args:
        features: `[N, D]` float32.
        targets: `[N, C]` bool; one class per row unless `multi_label`.
        inner: `(fit, validation)` rows, to choose the strength. Without one that has two classes to fit, the rows
            themselves choose it.

    Attributes:
        strength: the chosen inverse L2 strength (scikit-learn's `C`).
        converged: whether the optimizer reached its tolerance.
    """

    def __init__(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        inner: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        multi_label: bool,
        calibrated: bool = False,
    ) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._classes = targets.shape[1]
        self._multi_label = multi_label
        model: Any
        if multi_label:
            # Without a hidden layer it is a logistic regression of all classes at once; alpha is 1 / C there.
            model = MLPClassifier((), solver="lbfgs", max_iter=_ITERATIONS, random_state=0)
            grid = {"mlpclassifier__alpha": [1 / strength for strength in STRENGTHS]}
            labels = targets.astype(np.int64)
        else:
            model = LogisticRegression(max_iter=_ITERATIONS)
            grid = {"logisticregression__C": list(STRENGTHS)}
            labels = targets.argmax(1)
        scoring: Any = _mean_average_precision if multi_label else "accuracy"
        search = GridSearchCV(
            make_pipeline(StandardScaler(), model),
            grid,
            scoring=_negative_cross_entropy if calibrated else scoring,
            cv=_usable(targets, inner) or [(np.arange(len(targets)),) * 2],
            error_score="raise",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the caller reports it
            self._fitted = search.fit(features, labels).best_estimator_
        (value,) = search.best_params_.values()
        self.strength = float(f"{1 / value if multi_label else value:g}")
        self.converged = bool(np.max(self._fitted[-1].n_iter_) < _ITERATIONS)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """`[N, C]` float32 probabilities; 0 for classes that no training row has."""
        scores = np.zeros((len(features), self._classes), dtype=np.float32)
        columns = np.arange(self._classes) if self._multi_label else self._fitted.classes_
        scores[:, columns] = self._fitted.predict_proba(features)
        return scores


def neighbor_scores(features: np.ndarray, targets: np.ndarray, queries: np.ndarray, *, neighbors: int) -> np.ndarray:
    """`[Q, C]` float32: share of each class among the nearest of `[N, D]` features by cosine similarity."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(neighbors, len(features)), metric="cosine", algorithm="brute")
    index.fit(features)
    votes = []
    for at in range(0, len(queries), _QUERIES):
        nearest = index.kneighbors(queries[at : at + _QUERIES], return_distance=False)
        votes.append(targets[nearest].mean(1, dtype=np.float32))
    return np.concatenate(votes)


def _usable(targets: np.ndarray, inner: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The folds that can be fitted and scored: at least two classes to fit, and one to score."""
    return [rows for rows in inner if targets[rows[0]].any(0).sum() > 1 and targets[rows[1]].any()]


def _mean_average_precision(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    scores, targets = torch.from_numpy(model.predict_proba(features)), torch.from_numpy(labels > 0)
    return multi_label_scores(scores, targets).metrics()["map"]


def _negative_cross_entropy(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """Of the sigmoid of each class."""
    found = model.predict_proba(features)
    likelihood = np.where(labels > 0, found, 1 - found)
    return float(np.log(np.maximum(likelihood, 1e-12)).mean())
