"""Greedy decoding and beam search over a batch of clips, with the key/value cache of the caption decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from slap_fast.errors import ModelError
from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.ops.packed import PackedLayout


def greedy_search(
    decoder: CaptionDecoder, features: Tensor, layout: PackedLayout, start: int, end: int, max_length: int
) -> list[list[int]]:
    """The most probable token at each step, and the first of equally probable ones.

    Finished captions leave the batch.

    Args:
        decoder: gives the logits.
        features: `[T, feature_width]` packed audio features.
        layout: of the N clips in them.
        start: id of the token that starts a caption.
        end: id of the token that ends one.
        max_length: steps, hence tokens of a caption that does not end.

    Returns:
        N lists of token ids, without start and end.

    Raises:
        ModelError: a logit is not finite.
    """
    captions: list[list[int]] = [[] for _ in layout.lengths]
    state = decoder.start(features, layout)
    active = list(range(len(captions)))
    tokens = torch.full((len(active),), start, dtype=torch.int64, device=features.device)
    for _ in range(max_length):
        highest, tokens = decoder.step(tokens, state).max(dim=-1)
        ids = torch.where(highest.isfinite(), tokens, -1).tolist()  # one transfer to the host for both
        if -1 in ids:
            raise _not_finite()
        rows = [row for row, token in enumerate(ids) if token != end]
        for row in rows:
            captions[active[row]].append(ids[row])
        if not rows:
            break
        if len(rows) < len(active):
            active = [active[row] for row in rows]
            state.select(rows, _rows_per_clip(active, 1, len(captions)))
            tokens = tokens[torch.tensor(rows).to(tokens.device)]
    return captions


def beam_search(
    decoder: CaptionDecoder,
    features: Tensor,
    layout: PackedLayout,
    start: int,
    end: int,
    max_length: int,
    *,
    beams: int,
    length_penalty: float,
) -> list[list[int]]:
    """The caption with the highest score that beam search finds, with the rules of `generate` of transformers.

    The score is the log-probability divided by `tokens ** length_penalty`, where the end counts as a token. Of the
    continuations of a clip's captions, those among the `beams` best that end are kept, and the `beams` best others go
    on. A clip is finished when it has `beams` captions and the best continuation, scored as if it ended now, is not
    above the worst of them (`early_stopping=False`). At `max_length`, the `beams` best count as ended.

    Args and errors as in `greedy_search`.
    """
    clips = [_Beams(beams, length_penalty) for _ in layout.lengths]
    state = decoder.start(features, layout)
    active = list(range(len(clips)))
    state.select([clip for clip in active for _ in range(beams)], _rows_per_clip(active, beams, len(clips)))
    tokens = torch.full((len(active) * beams,), start, dtype=torch.int64, device=features.device)
    for step in range(1, max_length + 1):
        log_probabilities = decoder.step(tokens, state).float().log_softmax(dim=-1)  # [R, V]
        vocabulary = log_probabilities.shape[1]
        scores = torch.tensor([clips[clip].scores for clip in active]).to(features.device)  # [active, beams]
        candidates = (log_probabilities.unflatten(0, (-1, beams)) + scores[..., None]).flatten(1)
        # Twice as many as beams: if `beams` of them end, as many go on.
        best, position = candidates.topk(min(2 * beams, candidates.shape[1]))
        rows: list[int] = []
        running: list[int] = []
        for at, (clip, values, positions) in enumerate(zip(active, best.tolist(), position.tolist(), strict=True)):
            if any(math.isnan(value) for value in values):
                raise _not_finite()
            continuations = [divmod(position, vocabulary) for position in positions]
            clips[clip].advance(values, continuations, end, step, is_last=step == max_length)
            if not clips[clip].is_finished(step):
                running.append(clip)
                rows += [at * beams + source for source in clips[clip].sources]
        active = running
        if not active or step == max_length:
            break
        state.select(rows, _rows_per_clip(active, beams, len(clips)))
        tokens = torch.tensor([ids[-1] for clip in active for ids in clips[clip].captions]).to(features.device)
    return [clip.ended[0][1] for clip in clips]


class _Beams:
    """The captions of one clip during beam search, on the host.

    Attributes:
        scores: log-probabilities of the captions that go on, the highest first; -inf: a copy that fills the batch.
        captions: their token ids.
        sources: the beams that they continue.
        ended: scores and token ids of at most as many captions that have ended, the best first.
    """

    def __init__(self, beams: int, length_penalty: float) -> None:
        self._beams = beams
        self._length_penalty = length_penalty
        self.scores = [0.0] + [-math.inf] * (beams - 1)
        self.captions: list[list[int]] = [[] for _ in range(beams)]
        self.sources: list[int] = []
        self.ended: list[tuple[float, list[int]]] = []

    def advance(
        self, scores: Sequence[float], continuations: Sequence[tuple[int, int]], end: int, step: int, *, is_last: bool
    ) -> None:
        """Take the best continuations, the best first: their log-probabilities, beams and tokens."""
        going_on: list[tuple[float, int, list[int]]] = []
        for rank, (score, (beam, token)) in enumerate(zip(scores, continuations, strict=True)):
            if score == -math.inf:
                continue
            caption = self.captions[beam] + [token] * (token != end)
            if (token == end or is_last) and rank < self._beams:
                self.ended.append((score / step**self._length_penalty, caption))
            elif token != end:
                going_on.append((score, beam, caption))
        self.ended = sorted(self.ended, key=lambda ended: -ended[0])[: self._beams]
        if not going_on:
            self.scores = [-math.inf] * self._beams
            return
        missing = self._beams - len(going_on)
        going_on = going_on[: self._beams] + [(-math.inf, *going_on[0][1:])] * missing
        self.scores, self.sources, self.captions = (list(column) for column in zip(*going_on, strict=True))

    def is_finished(self, step: int) -> bool:
        if self.scores[0] == -math.inf:
            return True
        best = self.scores[0] / step**self._length_penalty
        return len(self.ended) == self._beams and best <= self.ended[-1][0]


def _rows_per_clip(active: Sequence[int], rows: int, clips: int) -> list[int]:
    counts = [0] * clips
    for clip in active:
        counts[clip] = rows
    return counts


def _not_finite() -> ModelError:
    return ModelError(
        "the caption decoder gives logits that are not finite: the model's weights are damaged, or its training had "
        "diverged; copy the model again, or export an earlier checkpoint"
    )
