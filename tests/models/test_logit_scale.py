from __future__ import annotations

import math

import pytest
import torch

from slap_fast.models.logit_scale import LogitScale


def test_it_starts_at_the_initial_value_and_stops_at_the_maximum():
    scale = LogitScale(math.log(1 / 0.07), math.log(100.0))
    assert float(scale().detach()) == pytest.approx(1 / 0.07)
    torch.nn.init.constant_(scale.delta, 9.0)
    assert float(scale().detach()) == pytest.approx(100.0)


@pytest.mark.parametrize(("sign", "passes"), [(1.0, True), (-1.0, False)])
def test_at_the_maximum_only_a_decrease_has_a_gradient(sign, passes):
    scale = LogitScale(0.0, 1.0)
    torch.nn.init.constant_(scale.delta, 1.5)
    (sign * scale()).sum().backward()
    assert bool(scale.delta.grad != 0) == passes


def test_bfloat16_resolves_small_changes_of_the_initial_value():
    scale = LogitScale(math.log(1 / 0.07), math.log(100.0)).bfloat16()
    before = float(scale().detach())
    torch.nn.init.constant_(scale.delta, 0.001)
    assert float(scale().detach()) / before == pytest.approx(1.001, rel=1e-5)
