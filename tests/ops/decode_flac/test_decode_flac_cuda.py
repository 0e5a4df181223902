"""The CUDA kernel of `decode_flac`: ceilings of its code, and its results on a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slap_fast.ops import decode_flac
from tests.ops.decode_flac._cases import DTYPES, encoded_batch, random_batch

ROOT = Path(__file__).parents[3]
NVCC = shutil.which("nvcc")
REPORT = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads(?:\n.*Used (\d+) registers)?"
)


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_the_kernel_stays_below_its_ceilings(architecture: str, tmp_path: Path) -> None:
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [str(NVCC), "-std=c++17", "-O3", "-Icsrc", target, "-Xptxas=-v", "-cubin", "csrc/cuda/flac.cu"]
    done = subprocess.run([*command, "-o", str(tmp_path / "flac.cubin")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert "warning" not in report
    functions = [tuple(int(value or 0) for value in found.groups()) for found in REPORT.finditer(report)]
    kernel = next(function for function in functions if function[3])
    # Blocks of 64 threads: a multiprocessor holds 8 of them, more than a batch of 1,000 clips of 10 s has.
    assert kernel[3] <= 128
    # The kernel calls the function that decodes a frame: what it keeps over the call is spilled once, not per sample.
    assert kernel[1] <= 192
    assert all(stores <= 32 for _, stores, _, registers in functions if not registers)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", range(3))
def test_files_have_the_same_samples_and_errors_as_on_a_cpu(dtype: int) -> None:
    batches = [*(random_batch(seed) for seed in range(40)), *(encoded_batch(seed) for seed in range(6))]
    for place, batch in enumerate(batches):
        if place % 3 == 0:  # damage
            blob = batch.blobs[0]
            batch.blobs[0] = blob[: len(blob) // 2] + b"\x55" + blob[len(blob) // 2 + 1 :]
        starts = None if batch.starts is None else torch.tensor(batch.starts)
        arguments: dict[str, Any] = {"channels": batch.channels, "dtype": DTYPES[dtype]}
        expected = decode_flac(batch.data, batch.offsets, batch.counts, starts=starts, backend="native", **arguments)
        for _ in range(2):
            found = decode_flac(
                batch.data.cuda(), batch.offsets.cuda(), batch.counts, starts=None if starts is None else starts.cuda(),
                backend="cuda", **arguments,
            )  # fmt: skip
            assert torch.equal(found.errors.cpu(), expected.errors)
            assert torch.equal(found.waveform.cpu(), expected.waveform)


@pytest.mark.gpu
def test_a_cuda_graph_decodes_new_bytes() -> None:
    first = encoded_batch(1)
    data, offsets, counts = first.data.cuda(), first.offsets.cuda(), torch.tensor(first.counts).cuda()

    def decode() -> torch.Tensor:
        return decode_flac(
            data, offsets, counts, channels=first.channels, total_samples=sum(first.counts), backend="cuda"
        ).waveform

    decode()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        waveform = decode()
    data.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert not waveform.any()
    data.copy_(first.data)
    graph.replay()
    torch.cuda.synchronize()
    assert np.array_equal(waveform.reshape(-1, first.channels).cpu().numpy(), first.expected(0))


@pytest.mark.gpu
def test_malformed_offsets_write_nothing_outside_the_outputs() -> None:
    batch = encoded_batch(2)
    rows, far = sum(batch.counts), 2**62
    for bad in ([0, far, -5, 3, rows], [rows, 0, 0, far, -far]):
        for files, samples in ((batch.offsets, torch.tensor(bad)), (torch.tensor(bad), batch.offsets)):
            op = torch.ops.slap_fast.decode_flac
            waveform, errors = op(
                batch.data.cuda(),
                files.cuda(),
                None,
                samples.cuda(),
                rows,
                batch.channels,
                torch.float32,
                "crc",
                "cuda",
            )
            assert waveform.shape[0] == rows
            assert errors.shape == (4,)
    torch.cuda.synchronize()
