"""Log-mel frontends in the forms that other code expects: a stream, torchaudio's module, Hugging Face's extractors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slap_fast.frontends.log_mel_stream import LogMelStream
from slap_fast.frontends.mel_spectrogram import MelSpectrogram

if TYPE_CHECKING:
    from slap_fast.frontends.feature_extractors import ASTFeatureExtractor as ASTFeatureExtractor
    from slap_fast.frontends.feature_extractors import ClapFeatureExtractor as ClapFeatureExtractor
    from slap_fast.frontends.feature_extractors import WhisperFeatureExtractor as WhisperFeatureExtractor

__all__ = ["ASTFeatureExtractor", "ClapFeatureExtractor", "LogMelStream", "MelSpectrogram", "WhisperFeatureExtractor"]


def __getattr__(name: str) -> Any:
    # The extractors need transformers, which takes seconds to import: only for those who ask for them.
    if name in __all__:
        return getattr(import_module("slap_fast.frontends.feature_extractors"), name)
    raise AttributeError(f"module 'slap_fast.frontends' has no attribute {name!r}")
