from __future__ import annotations

import pytest
import torch

from slap_fast.ops import dispatch
from slap_fast.ops.dispatch import Backend


def _small_only(*, size: int, **_: object) -> str | None:
    return None if size <= 4 else f"size {size} is over 4"


def _not_here() -> str | None:
    return "no such hardware"


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dispatch, "_backends", {})
    monkeypatch.setattr(dispatch, "_reasons", {})
    monkeypatch.setattr(dispatch, "_preferred", {})
    dispatch.register(
        "op", [Backend("absent", unavailable=_not_here), Backend("small", rejects=_small_only), Backend("torch")]
    )
    return "op"


@pytest.mark.parametrize(("requested", "size", "expected"), [("auto", 4, "small"), ("auto", 5, "torch")])
def test_auto_takes_the_first_backend_that_serves(op: str, requested: str, size: int, expected: str) -> None:
    assert dispatch.select(op, requested, size=size) == expected


def test_a_requested_backend_is_used_although_another_comes_first(op: str) -> None:
    assert dispatch.select(op, "torch", size=1) == "torch"


@pytest.mark.parametrize(
    ("requested", "message"), [("absent", "no such hardware"), ("small", "size 9 is over 4"), ("tpu", "absent, small")]
)
def test_a_requested_backend_that_cannot_serve_raises_with_the_reason(op: str, requested: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dispatch.select(op, requested, size=9)


@pytest.mark.parametrize(("requested", "refused"), [("absent", True), ("small", True), ("tpu", False)])
def test_a_refusal_raises_another_class_than_an_unknown_name(op: str, requested: str, refused: bool) -> None:
    with pytest.raises(ValueError, match=requested) as caught:
        dispatch.select(op, requested, size=9)
    assert isinstance(caught.value, dispatch.CannotServeError) == refused


def test_auto_without_a_serving_backend_gives_every_reason(op: str) -> None:
    dispatch.register(op, [Backend("absent", unavailable=_not_here), Backend("small", rejects=_small_only)])
    with pytest.raises(ValueError, match=r"absent: no such hardware; small: size 9 is over 4"):
        dispatch.select(op, "auto", size=9)


def test_auto_tries_the_preferred_backend_before_the_rest(op: str) -> None:
    compiled = torch.compile(
        lambda x: x * len(dispatch.select("op", "auto", size=x.shape[0])), fullgraph=True, backend="eager"
    )
    for preferred, expected in (
        ("torch", ["torch", "torch", "torch"]),
        ("small", ["small", "small", "torch"]),
        ("absent", ["small", "small", "torch"]),
    ):
        torch._dynamo.reset()
        with dispatch.preferring(op=preferred):
            assert [dispatch.select(op, "auto", size=size) for size in (3, 4, 5)] == expected
            assert dispatch.select(op, "small", size=3) == "small"
            assert [int(compiled(torch.ones(size))[0]) for size in (3, 4, 5)] == [len(name) for name in expected]
        assert dispatch.select(op, "auto", size=3) == "small"


def test_preferring_refuses_unknown_ops_and_backends(op: str) -> None:
    for unknown in ({"op": "tpu"}, {"opp": "torch"}):
        with pytest.raises(ValueError, match="has no backend"), dispatch.preferring(**unknown):
            pass
    assert dispatch.select(op, "auto", size=3) == "small"


def test_an_unknown_op_raises_with_the_registered_names(op: str) -> None:
    with pytest.raises(ValueError, match="unknown op 'opp'; registered: op"):
        dispatch.select("opp", "auto")


@pytest.mark.parametrize("names", [[], ["a", "a"], ["auto"]])
def test_register_refuses_ambiguous_names(op: str, names: list[str]) -> None:
    with pytest.raises(ValueError, match="distinct names"):
        dispatch.register("other", [Backend(name) for name in names])


def test_hardware_is_probed_once_for_many_calls(op: str) -> None:
    probes = []
    dispatch.register(op, [Backend("counted", unavailable=lambda: probes.append(1))])  # append returns None
    for _ in range(3):
        dispatch.select(op, "auto")
    assert len(probes) == 1


def test_report_includes_a_probe_that_raises(op: str) -> None:
    def broken() -> str | None:
        raise RuntimeError("driver too old")

    dispatch.register("broken", [Backend("gpu", unavailable=broken)])
    assert dispatch.report() == {
        "broken": [("gpu", "RuntimeError: driver too old")],
        "op": [("absent", "no such hardware"), ("small", None), ("torch", None)],
    }


def test_select_compiles_in_one_graph_for_changing_sizes(op: str) -> None:
    def double_if_small(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if dispatch.select("op", "auto", size=x.shape[0]) == "small" else x * 3

    compiled = torch.compile(double_if_small, fullgraph=True, dynamic=True, backend="eager")
    assert [compiled(torch.ones(size))[0].item() for size in (2, 3, 8, 9)] == [2, 2, 3, 3]
