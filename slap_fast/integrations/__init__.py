"""Drop-in replacements for parts of torchaudio and Hugging Face transformers, and a plugin for NVIDIA DALI.

- `MelSpectrogram`: `torchaudio.transforms.MelSpectrogram`
- `ASTFeatureExtractor`, `ClapFeatureExtractor`, `WhisperFeatureExtractor`: those of transformers
- `transformers_attention.register()`: packed attention for transformers models, `attn_implementation="slap_varlen"`
- `dali.register()`: FLAC in DALI pipelines, on CPU threads or on the GPU, `fn.slap_fast.flac`
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
    # Lazy: transformers takes seconds to import.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
