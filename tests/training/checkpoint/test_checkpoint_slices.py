"""Slices that some ranks wrote are read by any others, and what is missing is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slap_fast.training.checkpoint.slice_files import (
    MissingSliceError,
    SliceReader,
    StateSnapshot,
    rank_share,
    write_slices,
)
from slap_fast.training.checkpoint.state_slices import Slice

STATE = {("weight", "a"): torch.arange(10.0), ("exp_avg", "a"): -torch.arange(10.0), ("weight", "b"): torch.ones(1)}


def cut(world_size: int, rank: int, *, replicated: bool) -> list[Slice]:
    """As ZeRO would hold the state: whole, or in blocks of rounded-up size, of which the last may be empty."""
    slices = []
    for (kind, name), value in STATE.items():
        block = len(value) if replicated else -(-len(value) // world_size)
        begin = 0 if replicated else rank * block
        if part := len(value[begin : begin + block]):
            slices.append(Slice(kind, name, begin, value[begin : begin + part].clone(), replicated))
    return slices


def write(folder: Path, world_size: int, *, replicated: bool) -> list[Path]:
    paths = [folder / f"{rank}.safetensors" for rank in range(world_size)]
    for rank, path in enumerate(paths):
        write_slices(path, rank_share(cut(world_size, rank, replicated=replicated), rank, world_size))
    return paths


@pytest.mark.parametrize("saved_whole", [True, False])
@pytest.mark.parametrize("saved_by", [1, 2, 4])
@pytest.mark.parametrize(("world_size", "whole"), [(1, True), (3, False), (7, False)])
def test_any_layout_reads_what_another_wrote(
    tmp_path: Path, saved_by: int, saved_whole: bool, world_size: int, whole: bool
) -> None:
    with SliceReader(write(tmp_path, saved_by, replicated=saved_whole)) as reader:
        for rank in range(world_size):
            for wanted in cut(world_size, rank, replicated=whole):
                expected = wanted.value.clone()
                wanted.value.fill_(float("nan"))
                reader.read_into(wanted)
                assert torch.equal(wanted.value, expected)
        assert torch.equal(reader.whole("weight", "a", [2, 5]), STATE["weight", "a"].view(2, 5))


def test_ranks_share_the_writing_of_what_all_of_them_hold(tmp_path: Path) -> None:
    first, second, third = (rank_share(cut(3, rank, replicated=True), rank, 3) for rank in range(3))
    assert set(first) == {"weight/a@0", "exp_avg/a@0"}
    assert set(second) == {"weight/a@3", "exp_avg/a@3"}
    assert set(third) == {"weight/a@6", "exp_avg/a@6", "weight/b@0"}


def test_a_stretch_that_no_file_holds_is_an_error_that_names_it(tmp_path: Path) -> None:
    paths = write(tmp_path, 2, replicated=False)
    with (
        SliceReader(paths[:1]) as reader,
        pytest.raises(MissingSliceError, match=r"exp_avg of a ends at element 5, before 10"),
    ):
        reader.whole("exp_avg", "a", [10])
    with SliceReader(paths) as reader, pytest.raises(MissingSliceError, match=r"average of a ends at element 0"):
        reader.whole("average", "a", [10])


def test_those_who_read_the_folder_read_the_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (path,) = write(tmp_path, 1, replicated=True)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_copy_keeps_what_was_there_and_its_memory() -> None:
    share = rank_share(cut(1, 0, replicated=True), 0, 1)
    expected = {key: value.clone() for key, value in share.items()}
    copy = StateSnapshot()
    first = copy.take(share)
    for value in share.values():
        value.zero_()
    assert all(torch.equal(first[key], value) for key, value in expected.items())
    again = copy.take(share)
    assert again["weight/a@0"].data_ptr() == first["weight/a@0"].data_ptr()
    assert not again["weight/a@0"].any()
