"""N-gram metrics of captions: BLEU-1 to 4, ROUGE-L and CIDEr-D, with the definitions and constants of coco-caption.

All take tokens (`tokenize`): one generated caption and one or more references for each of N clips.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

Tokens = Sequence[str]

ORDER = 4  # n-grams of 1 to 4 tokens
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0
# coco-caption adds these, so that a count of zero gives a BLEU near zero and no division by zero.
_TINY, _SMALL = 1e-15, 1e-9


def bleu_counts(generated: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """Counts of each clip that `bleu` sums.

    Returns:
        `[N, 10]` float64: n-grams of 1 to 4 tokens that a reference has too (at most as often as the reference with the
        most), all n-grams of 1 to 4 tokens, tokens, and tokens of the reference with the nearest length.
    """
    rows = np.zeros((len(generated), 2 * ORDER + 2))
    for row, candidate, clip_references in zip(rows, generated, references, strict=True):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in clip_references:
            most |= _ngrams(reference)
        for ngram, count in _ngrams(candidate).items():
            row[len(ngram) - 1] += min(count, most[ngram])
        length = len(candidate)
        row[ORDER : 2 * ORDER] = [max(0, length - n) for n in range(ORDER)]
        nearest = min((abs(len(reference) - length), len(reference)) for reference in clip_references)[1]
        row[2 * ORDER :] = length, nearest
    return rows


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4 of the clips whose counts are summed in `[..., 10]`; `[..., 4]` float64 in [0, 1].

    Corpus BLEU is `bleu(bleu_counts(...).sum(0))`, not the mean over clips (Papineni et al., ACL 2002, equation 3; the
    reference of the nearest length, the shorter of two, gives the brevity penalty).
    """
    matched, possible = counts[..., :ORDER], counts[..., ORDER : 2 * ORDER]
    precisions = (matched + _TINY) / (possible + _SMALL)
    means = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, ORDER + 1))
    ratio = (counts[..., 2 * ORDER] + _TINY) / (counts[..., 2 * ORDER + 1] + _SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return means * penalty[..., None]


def rouge_l(generated: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """ROUGE-L of each clip, `[N]` float64 in [0, 1].

    The F-measure with beta 1.2 of the highest precision and the highest recall over the references, where a longest
    common subsequence is a match (Lin, ACL 2004, equations 2 to 4).
    """
    return np.array(
        [_rouge_l(candidate, texts) for candidate, texts in zip(generated, references, strict=True)], dtype=np.float64
    )


def cider_d(generated: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D of each clip, `[N]` float64 in [0, 10].

    The cosine similarity of tf-idf vectors, clipped to the reference, with a Gaussian penalty of different lengths,
    averaged over references and over n-grams of 1 to 4 tokens, times 10 (Vedantam et al., CVPR 2015, section 6). The
    document frequency of an n-gram is the number of these N clips with a reference that has it. With one clip each
    n-gram is in all clips, which gives 0.
    """
    counts = [[_ngrams(text) for text in texts] for texts in references]
    frequency = Counter(ngram for texts in counts for ngram in set().union(*texts))
    clips = math.log(len(counts)) if counts else 0.0
    scores = np.zeros(len(counts))
    for clip, (candidate, texts) in enumerate(zip(generated, counts, strict=True)):
        vectors, norms, length = _tf_idf(_ngrams(candidate), frequency, clips)
        for text in texts:
            other_vectors, other_norms, other_length = _tf_idf(text, frequency, clips)
            penalty = math.exp(-((length - other_length) ** 2) / (2 * _CIDER_SIGMA**2))
            for vector, norm, other, other_norm in zip(vectors, norms, other_vectors, other_norms, strict=True):
                overlap = sum(
                    min(value, other[ngram]) * other[ngram] for ngram, value in vector.items() if ngram in other
                )
                scale = norm * other_norm
                scores[clip] += penalty * (overlap / scale if scale else overlap)
        scores[clip] *= 10 / (ORDER * len(texts))
    return scores


def _ngrams(tokens: Tokens) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + n]) for n in range(1, ORDER + 1) for at in range(len(tokens) - n + 1))


def _rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    # coco-caption gives an empty caption one empty token.
    candidate = candidate or ("",)
    matches = [(_longest_common_subsequence(candidate, text or ("",)), len(text) or 1) for text in references]
    precision = max(match for match, _ in matches) / len(candidate)
    recall = max(match / length for match, length in matches)
    if not precision:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    above = [0] * (len(second) + 1)
    for token in first:
        row = [0]
        for at, other in enumerate(second):
            row.append(above[at] + 1 if token == other else max(above[at + 1], row[at]))
        above = row
    return above[-1]


def _tf_idf(
    counts: Counter[tuple[str, ...]], frequency: Counter[tuple[str, ...]], clips: float
) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
    """A vector and its norm for each n, and the number of bigrams, which coco-caption takes as the length."""
    vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
    for ngram, count in counts.items():
        vectors[len(ngram) - 1][ngram] = count * (clips - math.log(max(1, frequency[ngram])))
    norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
    return vectors, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)
