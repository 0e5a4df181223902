from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from slap_fast.runtime.buffer_pool import BufferPool

SIZE = 3 << 20


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_an_unused_block_is_reused() -> None:
    pool = BufferPool()
    first = pool.take(SIZE)
    assert (first.shape, first.dtype, first.flags.writeable) == ((SIZE,), np.uint8, True)
    place = address(first)
    del first
    again = pool.take(SIZE // 2)
    assert address(again) == place
    assert address(pool.take(SIZE)) != place


@pytest.mark.parametrize(
    "keep",
    [
        lambda block: block,
        lambda block: block[7:9],
        lambda block: block[7:][1:2],
        lambda block: block.view(np.float32)[3:4],
        lambda block: memoryview(block)[7:9],
        lambda block: torch.from_numpy(block.view(np.float32)).split([SIZE // 4 - 2, 2])[1],
        lambda block: torch.from_numpy(block)[7:].as_strided((2,), (1,)),
        lambda block: np.frombuffer(memoryview(block)[7:9], np.uint8),
    ],
)
def test_a_block_is_not_reused_while_a_view_of_it_exists(keep: Callable[[np.ndarray], Any]) -> None:
    pool = BufferPool()
    block = pool.take(SIZE)
    block[:] = 1
    place, part = address(block), keep(block)
    before = bytes(part) if isinstance(part, memoryview) else part.tolist()
    del block
    other = pool.take(SIZE)
    other[:] = 2
    assert address(other) != place
    assert (bytes(part) if isinstance(part, memoryview) else part.tolist()) == before
    del part
    assert address(pool.take(SIZE)) == place


def test_a_block_may_be_empty() -> None:
    assert len(BufferPool().take(0)) == 0


def test_threads_never_share_a_block() -> None:
    pool = BufferPool()

    def work(number: int) -> bool:
        right = True
        for turn in range(200):
            block = pool.take(1000 + turn)
            block[:] = number
            right &= bool((block == number).all())
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
