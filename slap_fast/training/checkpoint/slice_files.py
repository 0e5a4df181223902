"""Slice files: each rank writes its slices of the state; any number of ranks reads what it needs from all files."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slap_fast.errors import SlapFastError
from slap_fast.runtime.durable_files import save_safetensors
from slap_fast.training.checkpoint.state_slices import Slice


def rank_share(slices: Iterable[Slice], rank: int, world_size: int) -> dict[str, Tensor]:
    """The tensors that a rank writes, by key: its own slices, and an equal part of each replicated slice."""
    share = {}
    for part in slices:
        begin, end = 0, part.value.numel()
        if part.replicated:
            begin, end = end * rank // world_size, end * (rank + 1) // world_size
        if begin < end:
            share[f"{part.kind}/{part.name}@{part.offset + begin}"] = part.value[begin:end]
    return share


def write_slices(path: Path, share: dict[str, Tensor]) -> None:
    """Write the slices of one rank.

    Raises:
        OSError: the file cannot be written.
    """
    save_safetensors(path, share)


class StateSnapshot:
    """Host copy of the tensors that a rank writes; its memory is reused, and pinned if the state is on a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, share: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy the tensors; the copy is valid until the next call."""
        total = sum(value.numel() for value in share.values())
        gpu = next((value.device for value in share.values() if value.is_cuda), None)
        if self._memory.numel() != total:
            self._memory = torch.empty(total, pin_memory=gpu is not None)
        parts = self._memory.split([value.numel() for value in share.values()])
        for part, value in zip(parts, share.values(), strict=True):
            part.copy_(value, non_blocking=True)
        if gpu is not None:
            torch.cuda.synchronize(gpu)
        return dict(zip(share, parts, strict=True))


class MissingSliceError(SlapFastError, OSError):
    """The files do not hold all requested elements."""


class SliceReader:
    """Reads element ranges of parameters from the files of all ranks that saved; reads only those ranges from disk.

    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._open = ExitStack()
        # (kind, name) -> (offset, length, file, key) of every piece.
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)
        for path in paths:
            try:
                file = self._open.enter_context(safe_open(path, "pt"))
            except SafetensorError as error:
                raise OSError(f"{path}: {error}") from error
            for key in file.keys():  # noqa: SIM118 - not a mapping
                label, _, offset = key.rpartition("@")
                kind, _, name = label.partition("/")
                (length,) = file.get_slice(key).get_shape()
                self._pieces[kind, name].append((int(offset), length, file, key))
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[0])

    def __enter__(self) -> SliceReader:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    @torch.no_grad()
    def read_into(self, wanted: Slice) -> None:
        """Fill the slice's memory.

        Raises:
            MissingSliceError: the files do not hold all of it.
        """
        position, end = wanted.offset, wanted.offset + wanted.value.numel()
        for offset, length, file, key in self._pieces[wanted.kind, wanted.name]:
            stop = min(end, offset + length)
            if offset <= position < stop:
                piece = file.get_slice(key)[position - offset : stop - offset]
                wanted.value[position - wanted.offset : stop - wanted.offset].copy_(piece)
                position = stop
        if position < end:
            raise MissingSliceError(f"{wanted.kind} of {wanted.name} ends at element {position}, before {end}")

    def whole(self, kind: str, name: str, shape: Sequence[int]) -> Tensor:
        """The full tensor of a parameter.

        Raises:
            MissingSliceError: the files do not hold all of it.
        """
        held = sum(length for _, length, *_ in self._pieces[kind, name])
        if (wanted := math.prod(shape)) > held:
            raise MissingSliceError(f"{kind} of {name} ends at element {held}, before {wanted}")
        value = torch.empty(tuple(shape))
        self.read_into(Slice(kind, name, 0, value.view(-1), replicated=False))
        return value
