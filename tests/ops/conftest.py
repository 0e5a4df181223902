"""What the tests of the ops share."""

from __future__ import annotations

import pytest

from tests.ops._native import instruction_sets


@pytest.fixture(scope="module", params=instruction_sets())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that native code runs with here; `native_code(isa=isa)` switches to it."""
    return request.param
