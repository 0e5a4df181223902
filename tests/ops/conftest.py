"""Fixtures of the op tests."""

from __future__ import annotations

import pytest

from tests.ops._native import instruction_sets


@pytest.fixture(scope="module", params=instruction_sets())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of native code on this machine; `native_code(isa=isa)` selects it."""
    return request.param
