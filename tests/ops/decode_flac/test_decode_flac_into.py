from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slap_fast import native
from slap_fast.ops.decode_flac import FlacError
from slap_fast.ops.decode_flac.into import decode_flac_into
from tests.data.builders import encode, prepared

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="no native module")


def packed(files: list[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = np.cumsum([0, *map(len, files)])
    return torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8), torch.from_numpy(offsets)


def test_files_are_decoded_into_the_memory_of_the_caller_by_any_number_of_threads() -> None:
    generator = np.random.default_rng(0)
    pcm = [(generator.standard_normal(length) * 3000).astype(np.int16) for length in (9000, 1, 4096, 20_000)]
    files = [prepared(pcm[0]), encode(pcm[1]), encode(pcm[2])[:-9], prepared(pcm[3])]
    starts = torch.tensor([5000, 0, 0, 0])
    samples = torch.tensor([1000, 1, 4096, 20_000])
    expected = [pcm[0][5000:6000], pcm[1], np.zeros(4096, np.int16), pcm[3]]
    for threads in (1, 2, 5):
        around = torch.full((int(samples.sum()) + 2,), torch.nan)
        errors = decode_flac_into(around[1:-1], *packed(files), samples, starts=starts, threads=threads)
        assert [bool(error) for error in errors.tolist()] == [False, False, True, False]
        assert errors[0] == FlacError.OK
        torch.testing.assert_close(
            around[1:-1] * 32768, torch.from_numpy(np.concatenate(expected)).float(), rtol=0, atol=0
        )
        assert bool(around[[0, -1]].isnan().all())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"waveform": torch.empty(99)}, r"\(99,\) on cpu; pass torch.float32 of shape \(100,\)"),
        ({"waveform": torch.empty(100, dtype=torch.float64)}, "waveform is torch.float64"),
        ({"waveform": torch.empty(200)[::2]}, "not contiguous"),
        ({"offsets": torch.tensor([0, 7])}, "offsets"),
        ({"samples": torch.tensor([-1])}, "-1"),
    ],
)
def test_invalid_arguments_raise(changed: dict[str, Any], message: str) -> None:
    data, offsets = packed([encode(np.zeros(100, np.int16))])
    arguments = {"waveform": torch.empty(100), "data": data, "offsets": offsets, "samples": torch.tensor([100])}
    with pytest.raises(ValueError, match=message):
        decode_flac_into(**{**arguments, "threads": 1, **changed})
