"""Measurement of a case: peers that are wrong, unavailable or raise have a row and no time; peak memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.harness import memory
from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings, benchmark_names, load_benchmark, relative_errors
from benchmarks.harness.measure import measure_case
from tests.benchmarks import toy

QUICK = Settings(quick=True, rounds=3)


def test_a_wrong_peer_is_never_timed() -> None:
    calls = []

    def setup() -> Run:
        return Run(step=lambda: calls.append("step"), outputs=lambda: {"sum": torch.tensor(1001.0)})

    case = replace(toy.broken_case(), peers=(Peer("right", setup),))
    row = measure_case("toy", case, QUICK, memory=False)["peers"][0]
    assert row["status"] == "failed check"
    assert "sum is off by 1.00e-03" in row["reason"]
    assert row["errors"]["sum"] == pytest.approx(1e-3)
    assert calls == []
    assert "time" not in row


def test_a_wrong_and_a_raising_peer_do_not_affect_the_others() -> None:
    rows = {row["name"]: row for row in measure_case("toy", toy.broken_case(), QUICK, memory=False)["peers"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "right": "ok",
        "wrong": "failed check",
        "raising": "error",
    }
    assert rows["raising"]["reason"] == "RuntimeError: no such kernel"
    assert len(rows["right"]["seconds"]) == 3


def test_if_the_baseline_fails_peers_have_a_time_and_no_ratio() -> None:
    rows = measure_case("toy", replace(toy.broken_case(), baseline="wrong"), QUICK, memory=False)["peers"]
    assert "time" in rows[0]
    assert "ratio" not in rows[0]


def test_an_unavailable_peer_is_listed_with_the_reason_and_not_set_up() -> None:
    (case,) = toy.cases(QUICK)
    rows = {row["name"]: row for row in measure_case("toy", case, QUICK, memory=False)["peers"]}
    assert rows["absent"] == {"name": "absent", "status": "not available", "reason": "libsum is not installed"}
    assert rows["small"]["rate"]["numbers"] == pytest.approx(1000 / rows["small"]["time"]["median"])


def test_out_of_memory_has_its_own_status() -> None:
    def setup() -> Run:
        raise torch.OutOfMemoryError("tried to allocate 900 GiB\nand more lines")

    case = replace(toy.broken_case(), peers=(Peer("right", setup),))
    row = measure_case("toy", case, QUICK, memory=False)["peers"][0]
    assert (row["status"], row["reason"]) == ("out of memory", "tried to allocate 900 GiB")


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, math.nan]), torch.ones(3)], ids=["nan", "shape"])
def test_a_non_finite_value_or_a_wrong_shape_is_an_infinite_error(wrong: torch.Tensor) -> None:
    right = torch.ones(2)
    assert relative_errors({"x": wrong}, {"x": right}) == {"x": math.inf}
    assert relative_errors({"x": right}, {"x": wrong}) == {"x": math.inf}


@pytest.mark.parametrize("outputs", [{}, {"y": torch.ones(1)}, {"x": torch.ones(1), "y": torch.ones(1)}])
def test_outputs_with_other_names_than_the_reference_are_an_error(outputs: Outputs) -> None:
    with pytest.raises(ValueError, match="do not match the outputs of the reference"):
        relative_errors(outputs, {"x": torch.ones(1)})


def test_peer_names_are_unique_and_the_baseline_is_one_of_them() -> None:
    peer = Peer("a", lambda: Run(lambda: None, dict))
    with pytest.raises(ValueError, match="two peers of the same name"):
        Case("case", (peer, peer), "a", dict, 0.0)
    with pytest.raises(ValueError, match="baseline 'b'"):
        Case("case", (peer,), "b", dict, 0.0)


def test_benchmarks_are_found_by_file_name_and_helper_modules_are_not() -> None:
    names = benchmark_names()
    assert "training_step" in names
    assert not {"harness", "padded_model", "padded_layers", "step_flops", "__main__"} & set(names)


def test_an_unknown_benchmark_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no benchmark 'training_stop'.*training_step"):
        load_benchmark("training_stop")


def test_peak_memory_is_split_into_what_a_step_returns_keeps_and_frees() -> None:
    answer = memory.measure_in_child("tests.benchmarks.returning_toy", "returning", "wasteful", QUICK)
    assert answer["method"] == "peak RSS of a fresh process"
    step, working, kept = (answer[f"{name}_bytes"] for name in ("step", "working", "kept"))
    assert isinstance(step, int)
    assert isinstance(working, int)
    assert isinstance(kept, int)
    # 32 MiB are returned, 16 kept and 24 freed. Resident memory is accurate to about a quarter of a MiB.
    assert abs(working - 24 * toy.MEBIBYTE) < toy.MEBIBYTE / 2
    assert 0 <= kept - 16 * toy.MEBIBYTE < 8 * toy.MEBIBYTE  # pages of libraries are included
    assert 0 <= step - 72 * toy.MEBIBYTE < 8 * toy.MEBIBYTE


def test_the_error_of_a_child_process_is_the_reason() -> None:
    answer = memory.measure_in_child("tests.benchmarks.toy", "right", "absent", QUICK)
    assert list(answer) == ["reason"]
    assert "no such kernel" in str(answer["reason"])
