"""The native module `slap_fast._C`: loading it, why it is missing, and the instruction set it uses.

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
from slap_fast.native_sources import digest

ISA_VARIABLE = "SLAP_FAST_ISA"
_REASON_FILE = Path(__file__).with_name("_C.unavailable.txt")  # written by setup.py


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The module, or why there is none."""
    try:
        module = importlib.import_module("slap_fast._C")
    except ImportError as error:
        return None, _missing_reason(error)
    if module.__version__ != slap_fast.__version__:
        return None, (
            f"the native module is of version {module.__version__}, slap-fast of {slap_fast.__version__}: reinstall"
        )
    own = digest(Path(__file__).resolve().parents[1])
    if own is not None and getattr(module, "__sources__", None) not in ("", own):
        return None, "the native module was built from other C++ code than is here: `pip install -e .` again"
    forced = os.environ.get(ISA_VARIABLE)
    if forced:
        try:
            module.force_isa(forced)
        except ValueError as error:
            raise ValueError(f"{ISA_VARIABLE}={forced}: {error}") from None
    return module, None


def _missing_reason(error: ImportError) -> str:
    if _REASON_FILE.exists():
        why = _REASON_FILE.read_text(encoding="utf-8").strip()
        return f"built without the native module: {why}; install a C++ compiler and reinstall slap-fast"
    if isinstance(error, ModuleNotFoundError):
        return "the native module is not built for this Python: install slap-fast with `pip install .`"
    return f"the native module does not load ({error}): reinstall slap-fast"


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"slap-fast: {reason}. The PyTorch backend serves.", RuntimeWarning, stacklevel=3)


def load() -> ModuleType | None:
    """The native module; None, with one warning a process, where there is none.

    Raises:
        ValueError: SLAP_FAST_ISA names an instruction set that is unknown, or that this machine or build lacks.
    """
    module, reason = _load()
    if reason is not None:
        _warn_once(reason)
    return module


def require() -> ModuleType:
    """The native module, for code that is reached only where there is one."""
    module = load()
    assert module is not None, "selected although unavailable"
    return module


def unavailable() -> str | None:
    """Why there is no native module, None if there is one. Warns and raises as `load` does."""
    load()
    return _load()[1]


def isa() -> str | None:
    """The instruction set that the native code uses, None without it. Warns and raises as `load` does."""
    module = load()
    return None if module is None else module.chosen_isa()
