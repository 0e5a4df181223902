"""All sound events. The held-out combinations depend on the order of EVENTS, which therefore never changes."""

from __future__ import annotations

from slap_fast.synthetic.event import Event
from slap_fast.synthetic.events.animals import ANIMALS
from slap_fast.synthetic.events.machines import MACHINES
from slap_fast.synthetic.events.nature import NATURE
from slap_fast.synthetic.events.people import PEOPLE
from slap_fast.synthetic.events.signals import SIGNALS
from slap_fast.synthetic.events.unheard import UNHEARD

EVENTS: dict[str, Event] = {event.name: event for event in (*ANIMALS, *NATURE, *SIGNALS, *MACHINES, *PEOPLE)}
"""The events of the default dataset."""

NEW_EVENTS: dict[str, Event] = {event.name: event for event in UNHEARD}
"""A fifth as many events, which no clip of the default dataset has: every clip of `--events new` has one."""

ALL_EVENTS = EVENTS | NEW_EVENTS
