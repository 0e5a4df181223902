"""Drop-in replacements for parts of other libraries, built on `slap_fast.ops`: torchaudio's `MelSpectrogram`, the
feature extractors of Hugging Face transformers, and a packed attention implementation for its models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slap_fast.integrations.torchaudio import MelSpectrogram as MelSpectrogram
    from slap_fast.integrations.transformers_features import ASTFeatureExtractor as ASTFeatureExtractor
    from slap_fast.integrations.transformers_features import ClapFeatureExtractor as ClapFeatureExtractor
    from slap_fast.integrations.transformers_features import WhisperFeatureExtractor as WhisperFeatureExtractor

_MODULES = {
    "MelSpectrogram": "torchaudio",
    "ASTFeatureExtractor": "transformers_features",
    "ClapFeatureExtractor": "transformers_features",
    "WhisperFeatureExtractor": "transformers_features",
}

__all__ = ["ASTFeatureExtractor", "ClapFeatureExtractor", "MelSpectrogram", "WhisperFeatureExtractor"]


def __getattr__(name: str) -> Any:
    # transformers takes seconds to import: only for callers that use it.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
