"""Probability that a text describes a moment better than everyday background sounds do.

A cosine similarity has no natural threshold: it depends on the model, and on how general the text is. So each text
competes with fixed background texts, as in zero-shot classification: the probability is the softmax over the text and
the background, of similarities times the model's logit scale. 0.5 means that the text alone is as likely as all of the
background together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from slap_fast.config.model import ModelConfig

BACKGROUND = (
    "silence",
    "background noise",
    "a quiet room",
    "people talking",
    "a man speaking",
    "music playing",
    "wind",
    "rain",
    "a car passing by",
    "birds singing",
    "a dog barking",
    "footsteps",
    "water running",
    "a door closing",
    "an engine running",
    "a baby crying",
    "laughter",
    "typing on a keyboard",
    "a telephone ringing",
    "thunder",
)
"""The texts that every query competes with."""

SAME = 0.9
"""A background text of at least this cosine similarity with a query means the same sound, and is left out for it."""


class TextModel(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    @property
    def logit_scale(self) -> Any: ...

    def encode_text(self, texts: list[str]) -> Any: ...


@dataclass(frozen=True)
class QueryScorer:
    """Compares embeddings of moments with Q queries.

    Attributes:
        queries: Q texts.
        text: `[Q, D]` float32, their embeddings.
        background: `[B, D]` float32, those of the background texts.
        competing: `[Q, B]` bool: the background texts of each query.
        scale: the model's logit scale.
    """

    queries: tuple[str, ...]
    text: np.ndarray
    background: np.ndarray
    competing: np.ndarray
    scale: float

    @classmethod
    def of(cls, model: TextModel, queries: Sequence[str], others: Sequence[str] = ()) -> QueryScorer:
        """
        Args:
            queries: at least one text.
            others: texts that are added to the background of every query, however similar they are.
        """
        texts = model.encode_text([*queries, *BACKGROUND, *others]).detach().float().cpu().numpy()
        text, background = texts[: len(queries)], texts[len(queries) :]
        similarity = text @ background.T
        competing = similarity < SAME
        competing[:, len(BACKGROUND) :] = True
        # A model that tells nothing apart still has one text to compare with.
        competing[np.arange(len(text)), similarity.argmin(1)] = True
        return cls(tuple(queries), text, background, competing, float(model.logit_scale().detach()))

    def similarity(self, columns: np.ndarray) -> np.ndarray:
        """`[C, Q]` float32 cosine similarities of `[C, D]` unit-length embeddings."""
        return columns @ self.text.T

    def probability(self, columns: np.ndarray) -> np.ndarray:
        """`[C, Q]` float32 probabilities against the background, of `[C, D]` unit-length embeddings."""
        own = self.scale * self.similarity(columns)
        others = self.scale * (columns @ self.background.T)
        result = np.empty_like(own)
        for query, competing in enumerate(self.competing):
            logits = np.concatenate([own[:, query, None], others[:, competing]], axis=1)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            result[:, query] = weights[:, 0] / weights.sum(1)
        return result
