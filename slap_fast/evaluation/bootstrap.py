"""Bootstrap confidence intervals: percentiles of a score over resampled clips (Efron and Tibshirani, 1993, ch. 13)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

RESAMPLES = 1000
_CHUNK = 4_000_000  # drawn indices in memory at a time


def confidence_interval(
    per_item: np.ndarray,
    *,
    statistic: Callable[[np.ndarray], float] | Callable[..., np.floating] = np.mean,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> tuple[float, float]:
    """Percentile interval of a statistic over items.

    Args:
        per_item: `[N]` or `[N, ...]`, the score of each item.
        statistic: of an array of items; the mean is computed for all resamples at once.
        resamples: number of bootstrap samples.
        level: coverage, in (0, 1).
        seed: intervals of the same items and seed use the same resamples.
        groups: `[N]` integers: items of one group, such as the captions of a clip, are resampled together.

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: no item, a value that is not finite, not one group per item, or an argument out of range.
    """
    per_item = np.asarray(per_item, dtype=np.float64)
    if not per_item.ndim or not len(per_item):
        raise ValueError(f"per_item has shape {per_item.shape}; there is nothing to resample")
    if not np.isfinite(per_item).all():
        raise ValueError(
            f"per_item[{int(np.argwhere(~np.isfinite(per_item))[0][0])}] is not finite; leave that item out"
        )
    if groups is None:
        group, n_groups = np.arange(len(per_item)), len(per_item)
    else:
        if np.shape(groups) != (len(per_item),):
            raise ValueError(f"groups has shape {np.shape(groups)}; there are {len(per_item)} items")
        names, group = np.unique(groups, return_inverse=True)
        n_groups = len(names)
    draws = draw_groups(n_groups, resamples, seed)
    if statistic is np.mean and per_item.ndim == 1:
        sums, sizes = np.bincount(group, per_item, n_groups), np.bincount(group, minlength=n_groups)
        values = np.concatenate([sums[drawn].sum(1) / sizes[drawn].sum(1) for drawn in draws])
    else:
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=n_groups)
        starts = sizes.cumsum() - sizes
        values = np.array(
            [float(statistic(per_item[order[_rows(starts, sizes, one)]])) for drawn in draws for one in drawn]
        )
    return percentiles(values, level)


def draw_groups(n_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks of `[chunk, n_groups]` int64: the drawn groups of `resamples` bootstrap samples."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // n_groups)
    for start in range(0, resamples, chunk):
        yield generator.integers(n_groups, size=(min(chunk, resamples - start), n_groups))


def draw_counts(n_items: int, resamples: int, seed: int, *, chunk: int) -> Iterator[np.ndarray]:
    """Chunks of `[chunk, n_items]` int64: how often each item is in each of the samples of `draw_groups`."""
    for drawn in draw_groups(n_items, resamples, seed):
        for start in range(0, len(drawn), chunk):
            yield np.stack([np.bincount(one, minlength=n_items) for one in drawn[start : start + chunk]])


def percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """The bounds between which the share `level` of the values lies."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _rows(starts: np.ndarray, sizes: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Positions of all items of the drawn groups, where group g has those from `starts[g]` on."""
    lengths = sizes[drawn]
    ends = lengths.cumsum()
    return np.repeat(starts[drawn] - ends + lengths, lengths) + np.arange(ends[-1])
