"""Loader of the native module `slap_fast._C`: loads it once, or reports why it is missing.

The environment variable SLAP_FAST_ISA forces an instruction set: baseline, avx2, avx512 or avx512_bf16.
"""

from __future__ import annotations

import importlib
import os
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import slap_fast
from slap_fast.native_sources import source_digest

ISA_VARIABLE = "SLAP_FAST_ISA"
_REASON_FILE = Path(__file__).with_name("_C.unavailable.txt")  # written by setup.py


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The module, or the reason why it cannot be used."""
    try:
        module = importlib.import_module("slap_fast._C")
    except ImportError as error:
        return None, _missing_reason(error)
    if module.__version__ != slap_fast.__version__:
        return None, (
            f"the native module has version {module.__version__}, slap-fast has {slap_fast.__version__}: reinstall"
        )
    current = source_digest(Path(__file__).resolve().parents[1])
    if current is not None and getattr(module, "__sources__", None) not in ("", current):
        return None, "the native module was built from other C++ code than in csrc/: run `pip install -e .` again"
    forced = os.environ.get(ISA_VARIABLE)
    if forced:
        try:
            module.force_isa(forced)
        except ValueError as error:
            raise ValueError(f"{ISA_VARIABLE}={forced}: {error}") from None
    return module, None


def _missing_reason(error: ImportError) -> str:
    if _REASON_FILE.exists():
        reason = _REASON_FILE.read_text(encoding="utf-8").strip()
        return f"built without the native module: {reason}; install a C++ compiler and reinstall slap-fast"
    if isinstance(error, ModuleNotFoundError):
        return "the native module is not built for this Python: install slap-fast with `pip install .`"
    return f"the native module does not load ({error}): reinstall slap-fast"


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"slap-fast: {reason}. The PyTorch backend is used instead.", RuntimeWarning, stacklevel=3)


def load() -> ModuleType | None:
    """The native module; None if it cannot be used, with one warning per process.

    Raises:
        ValueError: SLAP_FAST_ISA names an unknown instruction set, or one that this machine or build lacks.
    """
    module, reason = _load()
    if reason is not None:
        _warn_once(reason)
    return module


def require() -> ModuleType:
    """The native module, for backends that are selected only if it is available."""
    module = load()
    assert module is not None, "a native backend was selected although the native module is unavailable"
    return module


def unavailable() -> str | None:
    """The reason why the native module cannot be used; None if it can. Warns and raises as `load`."""
    load()
    return _load()[1]


def isa() -> str | None:
    """The instruction set in use; None without the native module. Warns and raises as `load`."""
    module = load()
    return None if module is None else module.chosen_isa()
