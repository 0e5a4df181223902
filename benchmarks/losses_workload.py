"""Workloads of the loss benchmark: inputs, operation counts, and float64 references.

Exact gradients of a batch of 32,768 would take longer than all peers together. So a batch repeats a few distinct rows
in a shuffled order: its loss and gradients follow from those of the distinct rows, by autograd in float64. No peer
benefits from the repetition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.case import Outputs
from tests.oracles.linear_cross_entropy import linear_cross_entropy
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy

CHECKED_ROWS = 32_768  # of a larger batch, the gradients of this many rows, evenly spaced, are checked


@dataclass(frozen=True)
class Repeated:
    """`distinct` rows, each repeated `rows / distinct` times.

    Attributes:
        rows: clips or tokens.
        distinct: divides `rows`.
        width: D.
        dtype: of both factors of the products.
        device: of the tensors.
    """

    rows: int
    distinct: int
    width: int
    dtype: torch.dtype
    device: str

    def __post_init__(self) -> None:
        if self.rows % self.distinct:
            raise ValueError(f"rows is {self.rows}; it must be a multiple of distinct, {self.distinct}")

    @property
    def copies(self) -> int:
        return self.rows // self.distinct

    def order(self) -> Tensor:
        """`[rows]`: index of the distinct row at each position."""
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(9)) % self.distinct

    def repeat(self, distinct: Tensor) -> Tensor:
        return distinct[self.order()].to(self.device)

    def checked(self, gradient: Tensor) -> Tensor:
        """The rows of a gradient that are checked."""
        return gradient[:: max(1, self.rows // CHECKED_ROWS)]

    def repeat_gradient(self, gradient: Tensor) -> Tensor:
        """The checked rows of the batch's gradient, from that of the distinct rows; both of a mean over rows."""
        return gradient[self.checked(self.order())] / self.copies

    def _unit_rows(self, count: int, seed: int) -> Tensor:
        """`[count, D]` of length 1, rounded to the dtype."""
        return F.normalize(self._normal((count, self.width), seed), dim=1).to(self.dtype)

    def _normal(self, shape: Sequence[int], seed: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Contrastive(Repeated):
    """B audio and B text embeddings, `[B, D]`, of length 1; the cosine of a pair is 0.3.

    Attributes:
        kind: "infonce" at CLIP's initial temperature, or "sigmoid" at SigLIP's initial scale and bias.
    """

    kind: str

    @property
    def flop(self) -> float:
        """Four products: the similarities, again in the backward, and the gradients of both sides."""
        return 8.0 * self.rows**2 * self.width

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return ("audio", "text", "logit_scale", *(("logit_bias",) if self.kind == "sigmoid" else ()))

    def parameters(self) -> list[Tensor]:
        """In the order of `parameter_names`; scale and bias in float32, of shape []."""
        audio, text = (self.repeat(side) for side in self._clips())
        return [audio, text, *(scalar.to(self.device) for scalar in self._scalars())]

    def reference(self) -> Outputs:
        parameters = [x.double().requires_grad_() for x in (*self._clips(), *self._scalars())]
        audio, text, scale, *bias = parameters
        logits = scale * (audio @ text.T)
        if self.kind == "infonce":
            labels = torch.arange(self.distinct)
            loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2 + math.log(self.copies)
        else:
            logits = logits + bias[0]
            # Of the copies**2 pairs of a distinct clip with itself, all but `copies` are negatives.
            loss = (self.copies * F.softplus(logits).sum() - logits.diagonal().sum()) / self.distinct
        gradients = dict(zip(self.parameter_names, torch.autograd.grad(loss, parameters), strict=True))
        gradients |= {side: self.repeat_gradient(gradients[side]) for side in ("audio", "text")}
        return {"loss": loss.detach(), **gradients}

    def _clips(self) -> tuple[Tensor, Tensor]:
        audio, noise = self._unit_rows(self.distinct, 0), self._unit_rows(self.distinct, 1)
        text = F.normalize(0.3 * audio.float() + math.sqrt(1 - 0.3**2) * noise.float(), dim=1)
        return audio, text.to(self.dtype)

    def _scalars(self) -> list[Tensor]:
        return [torch.tensor(1 / 0.07)] if self.kind == "infonce" else [torch.tensor(10.0), torch.tensor(-10.0)]


@dataclass(frozen=True)
class Captions(Repeated):
    """Tokens of captions: hidden states `[T, D]` against a vocabulary `[V, D]`; the standard deviation of logits is 2.

    Attributes:
        vocabulary: V.
    """

    vocabulary: int

    @property
    def flop(self) -> float:
        """Three products: the logits, and the gradients of both sides."""
        return 6.0 * self.rows * self.vocabulary * self.width

    def parameters(self) -> list[Tensor]:
        """Hidden states and vocabulary."""
        hidden, vocabulary, _ = self._tokens()
        return [self.repeat(hidden), vocabulary.to(self.device)]

    def target(self) -> Tensor:
        return self.repeat(self._tokens()[2])

    def reference(self) -> Outputs:
        hidden, vocabulary, target = self._tokens()
        parameters = [x.double().requires_grad_() for x in (hidden, vocabulary)]
        loss = linear_cross_entropy(parameters[0], parameters[1], target)
        hidden_gradient, vocabulary_gradient = torch.autograd.grad(loss, parameters)
        return {
            "loss": loss.detach(),
            "hidden": self.repeat_gradient(hidden_gradient),
            "vocabulary": vocabulary_gradient,
        }

    def _tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self._normal((self.distinct, self.width), 0).to(self.dtype)
        vocabulary = (2 / math.sqrt(self.width) * self._normal((self.vocabulary, self.width), 1)).to(self.dtype)
        target = torch.randint(self.vocabulary, (self.distinct,), generator=torch.Generator().manual_seed(2))
        return hidden, vocabulary, target


@dataclass(frozen=True)
class Prototypes(Repeated):
    """Masked tokens: student and teacher features `[T, D]` against the prototypes `[K, D]` of each, all of length 1.

    Attributes:
        prototypes: K.
    """

    prototypes: int
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    iterations: int = 3

    @property
    def flop(self) -> float:
        """Seven products: the teacher's scores in three rounds and in the loss, the student's, and two gradients."""
        return 2.0 * (self.iterations + 4) * self.rows * self.prototypes * self.width

    def parameters(self) -> list[Tensor]:
        """The student's features and prototypes."""
        student, _, prototypes, _ = self._tokens()
        return [self.repeat(student), prototypes.to(self.device)]

    def teacher(self) -> tuple[Tensor, Tensor]:
        """Features and prototypes."""
        _, features, _, prototypes = self._tokens()
        return self.repeat(features), prototypes.to(self.device)

    def reference(self) -> Outputs:
        student, teacher, student_prototypes, teacher_prototypes = (x.double() for x in self._tokens())
        parameters = [student.requires_grad_(), student_prototypes.requires_grad_()]
        loss = prototype_cross_entropy(
            student,
            teacher,
            student_prototypes,
            teacher_prototypes,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            sinkhorn_iterations=self.iterations,
        )
        student_gradient, prototype_gradient = torch.autograd.grad(loss, parameters)
        return {
            "loss": loss.detach(),
            "student": self.repeat_gradient(student_gradient),
            "prototypes": prototype_gradient,
        }

    def _tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = [self._unit_rows(self.distinct, seed) for seed in (0, 1)]
        prototypes = [self._unit_rows(self.prototypes, seed) for seed in (2, 3)]
        return features[0], features[1], prototypes[0], prototypes[1]
