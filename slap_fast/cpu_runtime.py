"""How the CPU libraries beneath torch behave; they read it once, so it is settled before torch is loaded."""

from __future__ import annotations

import os

_SETTINGS = {
    # Threads that spin while they wait make a step 20 times slower when another process wants a core.
    "OMP_WAIT_POLICY": "passive",
    # oneDNN keeps a compiled product for each shape it has seen. A packed batch has a new length at every step, so the
    # cache never hits across steps and grows by gigabytes; without it a step takes as long.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
}


def settle() -> None:
    """Set what the user has not set."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
