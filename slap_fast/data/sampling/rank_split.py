"""A batch to ranks: equal counts, and as nearly equal work as that allows."""

from __future__ import annotations

import numpy as np

# Swaps after the first distribution. Two ranks a swap, and the first distribution is mostly good: few are ever needed.
_MAX_SWAPS = 256
# Relative difference between the heaviest and the lightest group at which swapping ends.
_GOOD_ENOUGH = 1e-3


def balanced_groups(weights: np.ndarray, groups: int) -> np.ndarray:
    """Divides items into groups of equal count and nearly equal weight; a pure function of its arguments.

    The items are dealt in rounds, from the heaviest to the lightest: each round gives every group one item, and the
    lightest group the heaviest (Graham's LPT rule, 1969, with equal counts). Then the heaviest and the lightest group
    swap the two items that even them out best, until they are within 0.1 % of each other, no swap helps, or 256 are
    done. With a few items a group, the longest of them may leave no better division than an uneven one.

    Args:
        weights: `[n]` non-negative int64: sums of integers are the same on every machine.
        groups: divides n.

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
        if gap <= _GOOD_ENOUGH * loads[heavy]:
            break
        # A swap that moves half of the gap closes it; one that moves all of it or more only turns it around.
        moved = weights[members[heavy]][:, None] - weights[members[light]]
        misses = np.abs(2 * moved - gap)
        giving, taking = np.unravel_index(int(misses.argmin()), misses.shape)
        if misses[giving, taking] >= gap:
            break
        members[heavy, giving], members[light, taking] = members[light, taking], members[heavy, giving]
        loads[heavy] -= moved[giving, taking]
        loads[light] += moved[giving, taking]
    return np.sort(members, axis=1)
