"""tests/native/flac_test.cpp under sanitizers: SIMD code and the emulated GPU agree on valid and damaged files."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from slap_fast.ops import FlacError
from tests.ops.decode_flac._cases import Batch, double_batch, encoded_batch, random_batch, read_results, write_cases
from tests.ops.decode_flac._native_program import COMPILER, build_program
from tests.oracles.flac import random_flac


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program(tmp_path_factory.mktemp("flac"))


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_code_for_cpus_and_gpus_decodes_exactly_and_is_clean_under_sanitizers(program: Path, tmp_path: Path) -> None:
    batches = []
    for seed in range(50):
        batch, dtype = random_batch(seed), seed % 3
        batches.append((batch, dtype, 2 if batch.starts is None and dtype != 2 and seed % 2 else 1))
    batches += [(encoded_batch(seed), seed % 3, 1) for seed in range(6)]
    batches += [(double_batch(), dtype, 1) for dtype in range(3)]
    cases, results = tmp_path / "cases", tmp_path / "results"
    write_cases(cases, batches)
    done = subprocess.run([str(program), "decode", str(cases), str(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (batch, dtype, _), (errors, samples) in zip(batches, read_results(results, batches), strict=True):
        assert not errors.any()
        assert np.array_equal(samples, batch.expected(dtype))
    # A longer run of the same program: 1,000,000 inputs found nothing.
    done = subprocess.run([str(program), "fuzz", str(cases), "7", "3000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_file_of_unknown_length_has_neither_more_samples_nor_fewer(program: Path, tmp_path: Path) -> None:
    choose = random.Random(8)
    flac = random_flac(choose, bits=16, channels=2)
    while len(flac.blocks) < 3:
        flac = random_flac(choose, bits=16, channels=2)
    flac.known_length = False
    count, few = len(flac.samples), flac.blocks[0]
    blob, wrong = flac.file(), [FlacError.WRONG_LENGTH]
    batches = [(Batch(2, [blob, blob + b"TAG"], [flac.samples] * 2, [16] * 2, None, [count, count]), 0, 1)]
    batches += [(Batch(2, [blob], [flac.samples], [16], None, [few]), 0, 1)]
    for start in (count - 5, 2**62, 2**63 - 1, 2**63 - 6):
        batches.append((Batch(2, [blob], [flac.samples], [16], [start], [6]), 0, 1))
    cases, results = tmp_path / "cases", tmp_path / "results"
    write_cases(cases, batches)
    done = subprocess.run([str(program), "decode", str(cases), str(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read_results(results, batches)
    assert [errors.tolist() for errors, _ in found] == [[0, 0], wrong, [FlacError.TRUNCATED], wrong, wrong, wrong]
    assert not any(samples.any() for _, samples in found[1:])
