"""SLAP, Scalable Language-Audio Pretraining: the model, its training, and its ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slap_fast._version import __version__
from slap_fast.models.hugging_face.registration import register_when_imported

if TYPE_CHECKING:
    from slap_fast.library.library import Library as Library
    from slap_fast.models.hugging_face.configuration import SlapConfig as SlapConfig
    from slap_fast.models.hugging_face.modeling import SlapModel as SlapModel
    from slap_fast.models.hugging_face.processing import SlapProcessor as SlapProcessor
    from slap_fast.models.slap import SLAP as SLAP

__all__ = ["SLAP", "Library", "SlapConfig", "SlapModel", "SlapProcessor", "__version__"]

register_when_imported()


def __getattr__(name: str) -> Any:
    # Imported on first use: the models need torch and transformers, which take seconds to load.
    if name == "SLAP":
        from slap_fast.models.slap import SLAP

        return SLAP
    if name == "Library":
        from slap_fast.library.library import Library

        return Library
    if name == "SlapConfig":
        from slap_fast.models.hugging_face.configuration import SlapConfig

        return SlapConfig
    if name == "SlapModel":
        from slap_fast.models.hugging_face.modeling import SlapModel

        return SlapModel
    if name == "SlapProcessor":
        from slap_fast.models.hugging_face.processing import SlapProcessor

        return SlapProcessor
    raise AttributeError(f"module 'slap_fast' has no attribute {name!r}")
