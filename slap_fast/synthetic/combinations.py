"""Event combinations: the events and structure of a clip, and the combinations held out for validation.

The partition depends neither on the seed nor on the set of events: no validation combination of any dataset is a
training combination of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np

from slap_fast.synthetic.event import Event
from slap_fast.synthetic.events import ALL_EVENTS, EVENTS, NEW_EVENTS
from slap_fast.synthetic.seeding import ORDER_STREAM, generator

Structure = Literal[
    "single", "repetition", "faint", "loud", "rising", "falling", "sequence", "overlap", "overlap_then_sequence"
]
EventSet = Literal["default", "new"]
"""`default`: clips of EVENTS. `new`: clips of all events, each with at least one of NEW_EVENTS."""
EVENT_SETS: tuple[EventSet, ...] = ("default", "new")
# Events at these distances on the circle of all events are never in the same training clip. Because 3 + 4 = 7 and
# 4 + 7 = 11, there are triples with only held-out pairs. Each event has the same number of held-out partners.
HELD_OUT_DISTANCES = (3, 4, 7, 11)
TRAIN_STRUCTURES: dict[tuple[Structure, int], float] = {
    ("single", 1): 0.24,
    ("repetition", 1): 0.06,
    ("faint", 1): 0.025,
    ("loud", 1): 0.025,
    ("rising", 1): 0.025,
    ("falling", 1): 0.025,
    ("sequence", 2): 0.22,
    ("overlap", 2): 0.18,
    ("sequence", 3): 0.11,
    ("overlap_then_sequence", 3): 0.09,
}


@dataclass(frozen=True)
class Combination:
    """A set of events (sorted names) and the structure that combines them."""

    events: tuple[str, ...]
    structure: Structure


def is_held_out_pair(a: str, b: str) -> bool:
    """Whether the events named `a` and `b` are never in the same training clip."""
    names = _names("default" if EVENTS.keys() >= {a, b} else "new")
    apart = abs(names.index(a) - names.index(b))
    return min(apart, len(names) - apart) in HELD_OUT_DISTANCES


def solo_structures(event: Event) -> list[Structure]:
    """Structures of a clip with only this event, other than the plain one."""
    repetition: list[Structure] = ["repetition"] if event.countable else []
    ramps: list[Structure] = ["rising", "falling"] if event.steady else []
    return [*repetition, "faint", "loud", *ramps]


def held_out_solo(event: Event) -> Structure:
    """The single-event structure of this event that is held out for validation."""
    structures = solo_structures(event)
    return structures[_names("new").index(event.name) % len(structures)]


def is_held_out(combination: Combination) -> bool:
    """Whether a combination is held out for validation; True if any pair of its events is."""
    if len(combination.events) == 1:
        return combination.structure == held_out_solo(ALL_EVENTS[combination.events[0]])
    return any(is_held_out_pair(a, b) for a, b in combinations(combination.events, 2))


def draw_training(rng: np.random.Generator, events: EventSet = "default") -> Combination:
    """A random combination of an event set that is not held out."""
    names = _names(events)
    choices = list(TRAIN_STRUCTURES)
    structure, size = choices[rng.choice(len(choices), p=list(TRAIN_STRUCTURES.values()))]
    while True:
        drawn = [names[i] for i in rng.choice(len(names), size=size, replace=False)]
        combination = Combination(tuple(sorted(drawn)), structure)
        solo_fits = size > 1 or structure == "single" or structure in solo_structures(ALL_EVENTS[drawn[0]])
        if solo_fits and _belongs(combination.events, events) and not is_held_out(combination):
            return combination


@lru_cache(maxsize=4)
def validation_order(seed: int, events: EventSet = "default") -> tuple[Combination, ...]:
    """Every validation combination of an event set once, in the order of the validation clips of `seed`.

    The first ones (of the default set 333, one in nine a single event) all have different sets of events, so that a
    caption identifies one clip. After them, the pairs and triples repeat with their other structure.
    """
    rng = generator(seed, 0, ORDER_STREAM)
    structures: dict[int, list[Structure]] = {2: ["sequence", "overlap"], 3: ["sequence", "overlap_then_sequence"]}
    first = [
        Combination((name,), held_out_solo(event)) for name, event in ALL_EVENTS.items() if _belongs((name,), events)
    ]
    second = []
    for size in (2, 3):
        for names in combinations(sorted(_names(events)), size):
            if _belongs(names, events) and all(is_held_out_pair(a, b) for a, b in combinations(names, 2)):
                now = int(rng.integers(2))
                first.append(Combination(names, structures[size][now]))
                second.append(Combination(names, structures[size][1 - now]))
    return tuple(part[i] for part in (first, second) for i in rng.permutation(len(part)))


def _names(events: EventSet) -> tuple[str, ...]:
    return tuple(EVENTS if events == "default" else ALL_EVENTS)


def _belongs(names: tuple[str, ...], events: EventSet) -> bool:
    """Whether a clip with these events is one of the set."""
    return NEW_EVENTS.keys().isdisjoint(names) == (events == "default")
