"""SLAP, Scalable Language-Audio Pretraining: the model, its training, and its ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slap_fast._version import __version__

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP as SLAP

__all__ = ["SLAP", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the model needs torch and transformers, which take seconds to load.
    if name == "SLAP":
        from slap_fast.models.slap import SLAP

        return SLAP
    raise AttributeError(f"module 'slap_fast' has no attribute {name!r}")
