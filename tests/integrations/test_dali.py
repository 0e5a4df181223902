"""The DALI plugin: bits of libFLAC, bad files among good ones, builds and what is said when they fail."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slap_fast.errors import MissingExtraError
from slap_fast.integrations import dali
from slap_fast.ops.decode_flac import FlacError


@pytest.fixture(autouse=True, scope="module")
def packages() -> None:
    """Checked here, so that the test for GPUs is collected where they are missing."""
    for name in ("nvidia.dali", "soundfile"):
        pytest.importorskip(name)


ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
NVCC = shutil.which("nvcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
pytestmark = [pytest.mark.slow, needs_compiler]

RATE = 16_000
LENGTHS = [16_000, 1, 70_001, 4_096, 25_000]


@pytest.fixture(scope="session")
def cache(request: pytest.FixtureRequest) -> Path:
    """Kept from run to run, for compiling takes long."""
    return request.config.cache.mkdir("dali_plugin")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dali.CACHE_VARIABLE, str(cache))
    # Optimization of the kernels is for their own tests.
    unoptimized = "'-DCMAKE_CUDA_FLAGS_RELEASE=-Xcicc -O0 -Xptxas -O0' -DCMAKE_CXX_FLAGS_RELEASE=-O0"
    monkeypatch.setenv("CMAKE_ARGS", f"{unoptimized} -DSLAP_FAST_ISAS=")


@pytest.fixture
def plugin() -> Path:
    path = dali.build(cuda=NVCC is not None)  # one build for all tests
    dali.register(path)
    return path


def _flac(samples: int, channels: int = 1, subtype: str = "PCM_16", rate: int = RATE) -> np.ndarray:
    """The bytes of a file with noise that swells from silence to full scale."""
    noise = np.random.default_rng(samples).uniform(-1, 1, (samples, channels)) * np.linspace(0, 1, samples)[:, None]
    file = io.BytesIO()
    import soundfile

    soundfile.write(file, noise, rate, format="FLAC", subtype=subtype)
    return np.frombuffer(file.getvalue(), np.uint8)


def _libflac(encoded: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """`[samples, channels]`"""
    import soundfile

    return soundfile.read(io.BytesIO(encoded.tobytes()), dtype=dtype, always_2d=True)[0]


def _pipeline(batches: list[list[np.ndarray]], *, exec_dynamic: bool = True, **arguments: Any) -> Any:
    from nvidia.dali import Pipeline, fn

    operators: Any = fn
    remaining: Iterator[list[np.ndarray]] = iter(batches)
    pipeline = Pipeline(batch_size=8, num_threads=2, device_id=None, prefetch_queue_depth=1, exec_dynamic=exec_dynamic)
    with pipeline:
        encoded = fn.external_source(source=lambda: next(remaining), batch=True)
        pipeline.set_outputs(*operators.slap_fast.flac(encoded, **arguments))
    pipeline.build()
    return pipeline


def _run(pipeline: Any) -> tuple[list[np.ndarray], list[float], list[int]]:
    waveforms, rates, errors = (output.as_cpu() for output in pipeline.run())
    count = len(waveforms)
    return (
        [np.array(waveforms.at(i)) for i in range(count)],
        [float(rates.at(i)) for i in range(count)],
        [int(errors.at(i)) for i in range(count)],
    )


@pytest.mark.parametrize("exec_dynamic", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "int16", "int32"])
def test_batches_of_any_lengths_and_formats_have_the_bits_of_libflac(
    plugin: Path, dtype: str, exec_dynamic: bool
) -> None:
    from nvidia.dali.types import DALIDataType

    named = {"float32": DALIDataType.FLOAT, "int16": DALIDataType.INT16, "int32": DALIDataType.INT32}[dtype]
    batches = [
        [_flac(length) for length in LENGTHS],
        [_flac(5_000, channels, subtype) for channels in (1, 2) for subtype in ("PCM_S8", "PCM_16", "PCM_24")],
        [_flac(123, 6, rate=44_100)],
    ]
    pipeline = _pipeline(batches, dtype=named, exec_dynamic=exec_dynamic)
    for batch in batches:
        waveforms, rates, errors = _run(pipeline)
        assert errors == [FlacError.OK] * len(batch)
        import soundfile

        assert rates == [soundfile.info(io.BytesIO(encoded.tobytes())).samplerate for encoded in batch]
        for waveform, encoded in zip(waveforms, batch, strict=True):
            expected = _libflac(encoded, dtype)
            assert waveform.dtype == expected.dtype
            np.testing.assert_array_equal(waveform, expected)


def _damaged() -> dict[str, tuple[np.ndarray, FlacError, int]]:
    """Bad files, their error, and the number of zeros that stand for them."""
    good = _flac(20_000)
    flipped = good.copy()
    flipped[len(good) // 2] ^= 0x10
    silent = good.copy()  # STREAMINFO: 2^36 - 1 samples
    silent[21] |= 0x0F
    silent[22:26] = 0xFF
    unknown = good.copy()
    unknown[21] &= 0xF0
    unknown[22:26] = 0
    return {
        "empty": (good[:0], FlacError.NOT_FLAC, 0),
        "text": (np.frombuffer(b"not a FLAC file" * 9, np.uint8), FlacError.NOT_FLAC, 0),
        "header": (good[:30], FlacError.TRUNCATED, 0),
        "half": (good[: len(good) // 2], FlacError.TRUNCATED, 20_000),
        "flipped": (flipped, FlacError.BAD_CRC, 20_000),
        "claims": (silent, FlacError.WRONG_LENGTH, 0),
        "unknown": (unknown, FlacError.UNKNOWN_LENGTH, 0),
    }


@pytest.mark.parametrize("exec_dynamic", [True, False])
def test_a_bad_file_gets_its_error_and_zeros_and_changes_no_other(plugin: Path, exec_dynamic: bool) -> None:
    good = [_flac(length) for length in LENGTHS[:2]]
    cases = list(_damaged().values())
    batches = [[good[0], encoded, good[1]] for encoded, _, _ in cases]
    pipeline = _pipeline(batches, exec_dynamic=exec_dynamic)
    for _, error, zeros in cases:
        (first, bad, last), _, errors = _run(pipeline)
        assert errors == [FlacError.OK, error, FlacError.OK]
        np.testing.assert_array_equal(first, _libflac(good[0]))
        np.testing.assert_array_equal(last, _libflac(good[1]))
        np.testing.assert_array_equal(bad, np.zeros((zeros, 1), np.float32))


def test_mono_limits_and_checksums_are_applied_per_file(plugin: Path) -> None:
    mono, stereo = _flac(5_000), _flac(5_000, 2)
    wrong_md5 = mono.copy()
    wrong_md5[26] ^= 1
    flipped = _damaged()["flipped"][0]
    pipeline = _pipeline([[mono, stereo, _flac(5_001), wrong_md5]], mono=True, max_samples=5_000, verify="md5")
    waveforms, _, errors = _run(pipeline)
    assert errors == [FlacError.OK, FlacError.WRONG_CHANNELS, FlacError.WRONG_LENGTH, FlacError.BAD_MD5]
    assert [waveform.shape for waveform in waveforms] == [(5_000,), (0,), (0,), (5_000,)]
    np.testing.assert_array_equal(waveforms[0], _libflac(mono)[:, 0])
    assert not waveforms[3].any()
    assert _run(_pipeline([[wrong_md5]]))[2] == [FlacError.OK]
    assert _run(_pipeline([[flipped]], verify="none"))[2] != [FlacError.BAD_CRC]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"verify": "sha"}, "verify is 'sha'; choose 'none', 'crc' or 'md5'"),
        ({"max_samples": -1}, "max_samples is -1; it must be at least 0"),
        ({"dtype": "UINT8"}, "FLOAT, INT32, INT16"),
    ],
)
def test_a_wrong_argument_is_named(plugin: Path, arguments: dict[str, Any], message: str) -> None:
    from nvidia.dali.types import DALIDataType

    if "dtype" in arguments:
        arguments = {"dtype": getattr(DALIDataType, arguments["dtype"])}
    with pytest.raises(Exception, match=re.escape(message)):
        _pipeline([], **arguments)


def test_a_wrong_input_is_named(plugin: Path) -> None:
    with pytest.raises(Exception, match="pass the bytes of whole FLAC files"):
        _run(_pipeline([[np.zeros(100, np.float32)]]))


def test_a_serialized_pipeline_and_one_with_checkpoints_decode_the_same(plugin: Path) -> None:
    from nvidia.dali import Pipeline, fn

    operators: Any = fn
    encoded = _flac(16_000)
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, enable_checkpointing=True)
    with pipeline:
        pipeline.set_outputs(*operators.slap_fast.flac(fn.external_source(name="encoded")))
    again = Pipeline.deserialize(pipeline.serialize(), batch_size=1, num_threads=1, device_id=None)
    for each in (pipeline, again):
        each.feed_input("encoded", [encoded])
        np.testing.assert_array_equal(_run(each)[0][0], _libflac(encoded))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_files_packed_for_a_gpu_have_the_bits_of_libflac(tmp_path: Path) -> None:
    """Packing as for the GPU, decoded by the same runs on the CPU."""
    program = tmp_path / "packing"
    flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-Icsrc", "-DSLAP_FAST_ISA=baseline"]
    kernels = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cpu").glob("flac_*.cpp")]
    sources = ["tests/native/dali_packing_test.cpp", "csrc/cpu/isa.cpp", "csrc/cpu/parallel.cpp", *kernels]
    subprocess.run([str(COMPILER), *flags, *sources, "-o", str(program), "-lpthread", "-ldl"], cwd=ROOT, check=True)
    damaged = _damaged()
    cases = [
        (damaged["text"][0], FlacError.NOT_FLAC, 0),
        (_flac(5_000, 2), FlacError.OK, None),
        damaged["flipped"],
        (_flac(70_001), FlacError.OK, None),
        damaged["claims"],
        (_flac(123), FlacError.OK, None),
        (_flac(4_097, 2, "PCM_24"), FlacError.OK, None),
        damaged["empty"],
    ]
    for number, (encoded, _, _) in enumerate(cases):
        (tmp_path / f"{number}").write_bytes(encoded.tobytes())
    done = subprocess.run([str(program), str(tmp_path), str(len(cases))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, (encoded, error, zeros) in enumerate(cases):
        expected = _libflac(encoded) if zeros is None else np.zeros((zeros, 1), np.float32)
        decoded = np.fromfile(tmp_path / f"{number}.decoded", np.float32)
        np.testing.assert_array_equal(decoded, expected.ravel())
        assert int((tmp_path / f"{number}.error").read_text()) == error


@pytest.mark.gpu
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_on_a_gpu_the_bits_and_errors_are_those_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: one process has one plugin, and the other tests load one that is not optimized."""
    monkeypatch.delenv("CMAKE_ARGS")
    batch = [_flac(70_001), _flac(5_000, 2), *(encoded for encoded, _, _ in _damaged().values())]
    np.savez(tmp_path / "batch.npz", *batch)
    done = subprocess.run(
        [sys.executable, "-c", ON_BOTH_DEVICES, str(tmp_path / "batch.npz")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


ON_BOTH_DEVICES = """
import sys
import numpy as np
from nvidia.dali import Pipeline, fn
from slap_fast.integrations import dali

dali.register(dali.build(cuda=True))
batch = list(np.load(sys.argv[1]).values())
decoded = []
for device in ("cpu", "mixed"):
    pipeline = Pipeline(batch_size=len(batch), num_threads=2, device_id=0, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(*fn.slap_fast.flac(fn.external_source(name="encoded"), device=device))
    for _ in range(3):
        pipeline.feed_input("encoded", batch)
        decoded.append([output.as_cpu() for output in pipeline.run()])
for outputs in decoded[1:]:
    for output, expected in zip(outputs, decoded[0]):
        assert output.shape() == expected.shape()
        assert all(np.array_equal(output.at(i), expected.at(i)) for i in range(len(batch)))
"""


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_the_plugin_with_cuda_has_code_for_a100_and_h100(plugin: Path) -> None:
    assert {b"-arch sm_80", b"-arch sm_90"} <= set(re.findall(rb"-arch sm_\d+", plugin.read_bytes()))


@pytest.mark.skipif(NVCC is None, reason="without nvcc the other tests build it")
def test_the_plugin_without_cuda_compiles() -> None:
    import nvidia
    from nvidia.dali import sysconfig

    cuda = [str(folder) for entry in nvidia.__path__ for folder in Path(entry).glob("cu*/include")]
    headers = [flag for folder in (sysconfig.get_include_dir(), *cuda) for flag in ("-isystem", folder)]
    flags = ["-std=c++20", "-fsyntax-only", "-Icsrc", *headers]
    subprocess.run([str(COMPILER), *flags, "csrc/dali/flac_cpu.cpp"], cwd=ROOT, check=True)


def test_a_broken_library_in_the_cache_is_named_with_what_to_do(plugin: Path, tmp_path: Path) -> None:
    broken = tmp_path / "dali" / plugin.parent.name / plugin.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a library")
    program = "from slap_fast.integrations import dali; dali.register()"
    cuda = "0" if NVCC is None else "1"
    environment = {**os.environ, dali.CACHE_VARIABLE: str(tmp_path), dali.CUDA_VARIABLE: cuda}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert f"cannot load the plugin {broken}" in done.stderr
    assert "delete this file, and it is compiled again" in done.stderr


def test_a_plugin_for_another_version_of_dali_is_refused_with_both_named(plugin: Path, tmp_path: Path) -> None:
    import nvidia.dali

    version = f"DALI_{nvidia.dali.__version__}".encode()
    code = plugin.read_bytes()
    assert version in code
    other = tmp_path / dali.LIBRARY
    other.write_bytes(code.replace(version, b"DALI_" + b"9" * (len(version) - 5)))
    program = "import sys; from slap_fast.integrations import dali; dali.register(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(other)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"DaliPluginError: DALI {nvidia.dali.__version__} cannot load" in done.stderr
    assert "`DALI_9" in done.stderr
    assert "runs only in the version of DALI for which it was compiled" in done.stderr


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dali.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(dali.DaliPluginError, match=r"cannot be compiled: .*/nonexistent/c\+\+"):
        dali.build(cuda=False)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
    monkeypatch.setenv(dali.CACHE_VARIABLE, "/dev/null/cache")
    with pytest.raises(dali.DaliPluginError, match="SLAP_FAST_CACHE"):
        dali.build(cuda=False)


def test_a_plugin_of_another_compiler_is_not_taken_from_the_cache(
    plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(dali.DaliPluginError, match=r"/nonexistent/c\+\+"):
        dali.build(cuda=NVCC is not None)


def test_without_dali_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingExtraError, match=r"slap-fast\[dali\]"):
        dali.build()


def test_the_example_in_the_docs_runs(plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/dali.md").read_text(encoding="utf-8"), re.S | re.M)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for number, length in enumerate(LENGTHS):
        (tmp_path / "clips" / f"{number}.flac").write_bytes(_flac(length).tobytes())
    (tmp_path / "clips" / "bad.flac").write_bytes(b"not FLAC")
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["bad"] == 1
