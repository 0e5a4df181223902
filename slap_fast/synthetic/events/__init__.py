"""All sound events. The held-out combinations depend on their order: add new events at the end."""

from __future__ import annotations

from slap_fast.synthetic.event import Event
from slap_fast.synthetic.events.animals import ANIMALS
from slap_fast.synthetic.events.machines import MACHINES
from slap_fast.synthetic.events.nature import NATURE
from slap_fast.synthetic.events.people import PEOPLE
from slap_fast.synthetic.events.signals import SIGNALS

EVENTS: dict[str, Event] = {event.name: event for event in (*ANIMALS, *NATURE, *SIGNALS, *MACHINES, *PEOPLE)}
