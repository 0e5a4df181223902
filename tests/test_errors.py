"""Every exception class of the package derives from SlapFastError, so that the command line shows it as one line."""

from __future__ import annotations

import importlib

import pytest

from slap_fast.errors import SlapFastError
from tests.test_layers import MODULES

# Compiled or interpreted Triton code defines no exceptions, and needs triton to be imported.
IMPORTABLE = sorted(name for name in MODULES if not name.startswith(("slap_fast.kernels", "slap_fast.__main__")))


@pytest.mark.parametrize("name", IMPORTABLE)
def test_exceptions_of_a_module_derive_from_the_base_class(name: str) -> None:
    module = importlib.import_module(name)
    exceptions = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == name
    ]
    assert [error.__name__ for error in exceptions if not issubclass(error, SlapFastError)] == []
