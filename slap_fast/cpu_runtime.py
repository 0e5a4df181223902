"""How the CPU libraries beneath torch behave; they read it once, so it is settled before torch is loaded."""

from __future__ import annotations

import os

_SETTINGS = {
    # Threads that spin while they wait make a step 20 times slower when another process wants a core.
    "OMP_WAIT_POLICY": "passive",
    # oneDNN keeps a compiled product for each of the last 1,024 shapes. A packed batch has a new length at every step:
    # most are of no more use, and hold gigabytes. 32 serve the layers of a step; without any, it takes 10 % longer, in
    # micro-batches 17 %.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
}


def settle() -> None:
    """Set what the user has not set."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
