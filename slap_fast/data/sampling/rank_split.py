"""Rank split: divides a batch over the ranks with equal clip counts and nearly equal audio length."""

from __future__ import annotations

import numpy as np

# Each swap changes two ranks. The first distribution is usually good, so few swaps are needed.
_MAX_SWAPS = 256
# Swapping stops at this relative difference between the heaviest and the lightest group.
_TOLERANCE = 1e-3


def balanced_groups(weights: np.ndarray, groups: int) -> np.ndarray:
    """Divides items into groups of equal count and nearly equal weight; a pure function of its arguments.

    The items are dealt in rounds, from heaviest to lightest. In each round every group gets one item, and the lightest
    group gets the heaviest item (Graham's LPT rule, 1969, with equal counts). Then the heaviest and the lightest group
    swap the pair of items that balances them best, until they differ by at most 0.1 %, no swap helps, or 256 swaps are
    done. With few items per group, one very long item can make an even division impossible.

    Args:
        weights: `[n]` non-negative int64 (integer sums are the same on every machine).
        groups: number of groups; divides n.

    Returns:
        `[groups, n / groups]` int64 items, ascending in each group.
    """
    if groups == 1:
        return np.arange(len(weights))[None]
    loads = np.zeros(groups, np.int64)
    members = np.argsort(-weights, kind="stable").reshape(-1, groups)
    for number, dealt in enumerate(members):
        lightest_first = np.argsort(loads, kind="stable")
        loads[lightest_first] += weights[dealt]
        members[number, lightest_first] = dealt.copy()
    members = members.T.copy()
    for _ in range(_MAX_SWAPS):
        heavy, light = int(loads.argmax()), int(loads.argmin())
        gap = int(loads[heavy] - loads[light])
        if gap <= _TOLERANCE * loads[heavy]:
            break
        # A swap that moves half of the gap closes it; one that moves the whole gap or more only reverses it.
        moved = weights[members[heavy]][:, None] - weights[members[light]]
        misses = np.abs(2 * moved - gap)
        giving, taking = np.unravel_index(int(misses.argmin()), misses.shape)
        if misses[giving, taking] >= gap:
            break
        members[heavy, giving], members[light, taking] = members[light, taking], members[heavy, giving]
        loads[heavy] -= moved[giving, taking]
        loads[light] += moved[giving, taking]
    return np.sort(members, axis=1)
