"""`decode_flac` and `flac_info`: bits of libFLAC, damaged files among others, errors by message, compilation."""

from __future__ import annotations

import io
import random
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slap_fast import native
from slap_fast.ops import FlacError, decode_flac, dispatch, flac_info
from slap_fast.ops.decode_flac import backend_cuda
from tests.ops._native import instruction_sets, native_code, needs_native
from tests.ops.decode_flac._cases import DTYPES, Batch, encoded_batch, random_batch
from tests.oracles.flac import random_flac

BACKENDS = [pytest.param("native", marks=needs_native), "soundfile"]


def _decode(batch: Batch, dtype: int = 0, **options: object) -> tuple[np.ndarray, list[int]]:
    """`[T, channels]` and errors."""
    starts = None if batch.starts is None else torch.tensor(batch.starts)
    decoded = decode_flac(
        batch.data, batch.offsets, batch.counts, starts=starts, channels=batch.channels, dtype=DTYPES[dtype],
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return decoded.waveform.reshape(-1, batch.channels).numpy(), decoded.errors.tolist()


def _alone(blob: bytes) -> tuple[Tensor, Tensor]:
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8), torch.tensor([0, len(blob)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", range(3))
def test_files_of_an_encoder_have_the_samples_that_were_encoded(backend: str, dtype: int) -> None:
    for seed in range(6):
        batch = encoded_batch(seed)
        samples, errors = _decode(batch, dtype, backend=backend)
        assert errors == [0] * len(batch.blobs)
        assert np.array_equal(samples, batch.expected(dtype))


@needs_native
@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.integers(0, 2), threads=st.integers(1, 3))
def test_files_of_every_shape_are_decoded_exactly(seed: int, dtype: int, threads: int) -> None:
    batch = random_batch(seed, files=4)
    verify = "md5" if batch.starts is None and dtype != 2 else "crc"
    for isa in instruction_sets():
        with native_code(isa=isa, threads=threads):
            samples, errors = _decode(batch, dtype, backend="native", verify=verify)
        assert errors == [0] * len(batch.blobs)
        assert np.array_equal(samples, batch.expected(dtype))


@needs_native
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_files_of_every_shape_have_the_samples_of_libflac(seed: int) -> None:
    choose = random.Random(seed)
    flac = random_flac(choose, bits=choose.choice((8, 16, 24)))
    flac.known_length = True
    blob = flac.file()
    for dtype, name in enumerate(("float32", "int32", "int16")):
        try:
            expected, _ = soundfile.read(io.BytesIO(blob), dtype=name, always_2d=True)
        except soundfile.LibsndfileError:  # about one in 4,000 is too odd for libFLAC
            return
        count, channels = expected.shape
        found = decode_flac(*_alone(blob), [count], channels=channels, dtype=DTYPES[dtype], backend="native")
        assert found.errors.tolist() == [0]
        assert np.array_equal(found.waveform.reshape(count, channels).numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_file_has_an_error_and_zeros_and_no_other_file_changes(backend: str) -> None:
    batch = next(batch for seed in range(99) if (batch := encoded_batch(seed, 6)).channels == 1)
    intact, _ = _decode(batch, backend=backend)
    middle = [len(blob) // 2 for blob in batch.blobs]
    damaged = [
        batch.blobs[0],
        b"RIFF" + batch.blobs[1][4:],
        batch.blobs[2][: middle[2]],
        batch.blobs[3],
        batch.blobs[4][: middle[4]] + b"\x55\xaa\x55" + batch.blobs[4][middle[4] + 3 :],
        b"",
    ]
    batch.blobs = damaged
    samples, errors = _decode(batch, backend=backend)
    bounds = np.cumsum([0, *batch.counts])
    for file, (begin, end) in enumerate(pairwise(bounds)):
        good = file in (0, 3)
        assert (errors[file] == FlacError.OK) == good
        assert np.array_equal(samples[begin:end], intact[begin:end] if good else np.zeros((end - begin, 1)))
    assert errors[1] == errors[5] == FlacError.NOT_FLAC


@needs_native
def test_every_kind_of_error_is_found() -> None:
    choose = random.Random(5)
    flac = random_flac(choose, bits=16, channels=1)
    while len(flac.blocks) < 3 or flac.variable:
        flac = random_flac(choose, bits=16, channels=1)
    flac.seek_table, flac.known_length, flac.md5 = False, True, True
    blob, count = flac.file(), len(flac.samples)
    first = len(blob) - sum(map(len, flac.frames))

    def error(file: bytes, samples: int = count, verify: str = "crc", channels: int = 1) -> FlacError:
        decoded = decode_flac(*_alone(file), [samples], channels=channels, verify=verify, backend="native")
        assert decoded.errors[0] == 0 or not decoded.waveform.any()
        return FlacError(int(decoded.errors[0]))

    def changed(at: int, mask: int) -> bytes:
        return blob[:at] + bytes([blob[at] ^ mask]) + blob[at + 1 :]

    assert error(blob) == error(blob, verify="md5") == FlacError.OK
    assert error(b"OggS" + blob[4:]) == FlacError.NOT_FLAC
    assert error(blob[:-1]) == error(blob[:20]) == FlacError.TRUNCATED
    assert error(changed(first, 0xFF)) == FlacError.BAD_HEADER
    assert error(changed(first + len(flac.frames[0]) - 1, 1)) == FlacError.BAD_CRC
    assert error(changed(first + len(flac.frames[0]) - 1, 1), verify="none") == FlacError.OK
    assert error(changed(first + 4, 1)) == FlacError.BAD_CRC
    assert error(blob, count + 1) == error(blob, count - 1) == FlacError.WRONG_LENGTH
    assert error(blob, channels=2) == FlacError.WRONG_CHANNELS
    assert error(changed(26, 1), verify="md5") == FlacError.BAD_MD5  # the sum itself
    assert error(changed(26, 1)) == FlacError.OK
    assert error(changed(20, 1)) == FlacError.UNSUPPORTED  # 32 bits a sample
    assert all(kind.reason for kind in FlacError)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_checksum_of_all_samples_is_found_on_request(backend: str) -> None:
    for seed in range(5):
        batch = encoded_batch(seed)
        batch.blobs[1] = batch.blobs[1][:26] + bytes([batch.blobs[1][26] ^ 1]) + batch.blobs[1][27:]
        for dtype in range(2):
            errors = [0, FlacError.BAD_MD5, 0, 0]
            assert _decode(batch, dtype, verify="md5", backend=backend)[1] == errors
            assert _decode(batch, dtype, backend=backend)[1] == [0] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_header_cannot_claim_more_memory_than_its_bytes_can_hold(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "soundfile":
        monkeypatch.setattr("slap_fast.native.unavailable", lambda: "not for this test")
    flac = random_flac(random.Random(1), bits=16, channels=1)
    blob = bytearray(flac.file())
    blob[21] |= 0x0F  # the highest bits of the number of samples
    info = flac_info(*_alone(bytes(blob)))
    assert info.errors.tolist() == [FlacError.WRONG_LENGTH]
    for samples in (info.samples, None):
        decoded = decode_flac(*_alone(bytes(blob)), samples, backend=backend)
        assert decoded.waveform.numel() == 0
        assert decoded.errors.tolist() == [FlacError.WRONG_LENGTH]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_headers_say_how_many_samples_there_are(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "soundfile":
        monkeypatch.setattr("slap_fast.native.unavailable", lambda: "not for this test")
    batch = encoded_batch(3)
    info = flac_info(batch.data, batch.offsets)
    assert info.samples.tolist() == batch.counts
    assert info.bits.tolist() == batch.bits
    assert info.channels.tolist() == [batch.channels] * len(batch.blobs)
    assert info.sample_rate.tolist() == [16_000] * len(batch.blobs)
    assert info.errors.tolist() == [0] * len(batch.blobs)
    decoded = decode_flac(batch.data, batch.offsets, channels=batch.channels, backend=backend)
    assert torch.equal(decoded.cu_seqlens, torch.tensor([0, *np.cumsum(batch.counts)]))
    assert np.array_equal(decoded.waveform.reshape(-1, batch.channels).numpy(), batch.expected(0))


@needs_native
def test_threads_share_the_frames_of_a_long_file_and_a_false_table_changes_nothing() -> None:
    time = np.arange(1_300_000)
    values = np.rint(9000 * np.sin(time * 0.01) + 500 * np.sin(time * 0.37)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, values, 16_000, format="FLAC")
    plain, points = file.getvalue(), []
    array = np.frombuffer(plain, np.uint8)
    error, frames = native.require().flac_frames(data=array.ctypes.data, bytes=len(array))
    assert error == 0
    start = frames[0][1]
    for shift in (0, 1):  # a true table; one whose points are a byte off from the fourth on
        points = [
            sample.to_bytes(8, "big") + (byte - start + shift * (i > 3)).to_bytes(8, "big") + count.to_bytes(2, "big")
            for i, (sample, byte, count) in enumerate(frames)
        ]
        table = b"\x03" + (18 * len(points)).to_bytes(3, "big") + b"".join(points)
        tabled = plain[:42] + table + plain[42:]
        assert flac_info(*_alone(tabled)).points.tolist() == [len(points)]
        for threads in (1, 3):
            with native_code(threads=threads):
                decoded = decode_flac(*_alone(tabled), [len(values)], dtype=torch.int16, backend="native")
            assert decoded.errors.tolist() == [0]
            assert np.array_equal(decoded.waveform.numpy(), values)
            for begin in (0, 4095, 4096, 700_001):
                crop = decode_flac(
                    *_alone(tabled), [5000], starts=torch.tensor([begin]), dtype=torch.int16, backend="native"
                )
                assert np.array_equal(crop.waveform.numpy(), values[begin : begin + 5000])


def test_one_compilation_serves_batches_of_any_size() -> None:
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def decode(data: Tensor, offsets: Tensor, samples: Tensor, total: int) -> tuple[Tensor, ...]:
        return decode_flac(data, offsets, samples, total_samples=total)

    for seed in range(3, 7):
        batch = encoded_batch(seed, files=seed)
        if batch.channels != 1:
            continue
        waveform, _, errors = decode(batch.data, batch.offsets, torch.tensor(batch.counts), sum(batch.counts))
        assert not errors.any()
        assert np.array_equal(waveform[:, None].numpy(), batch.expected(0))
    assert counter.frame_count <= 1


@needs_native
def test_the_registered_op_is_well_formed() -> None:
    batch = encoded_batch(1)
    cu_seqlens = torch.tensor([0, *np.cumsum(batch.counts)])
    arguments = batch.data, batch.offsets, None, cu_seqlens, sum(batch.counts), batch.channels, torch.float32, "crc"
    torch.library.opcheck(torch.ops.slap_fast.decode_flac.default, (*arguments, "native"))


def test_wrong_arguments_are_named() -> None:
    batch = encoded_batch(1)
    data, offsets, counts = batch.data, batch.offsets, batch.counts

    def refuses(message: str, *arguments: object, **options: object) -> None:
        with pytest.raises(ValueError, match=message):
            decode_flac(*arguments, **options)  # type: ignore[arg-type]

    refuses("data is torch.int8", data.to(torch.int8), offsets, counts)
    refuses(r"offsets", data, offsets[:-1], counts[:-1])
    refuses(r"offsets is torch.int64 of shape \(0,\)", data, offsets[:0], [])
    refuses("offsets is a list", data, offsets.tolist(), counts)
    refuses(r"samples is torch.int64 of shape \(1,\)", data, offsets, [1])
    refuses("cannot be negative", data, offsets, [-1] * len(counts))
    refuses("dtype is torch.float64", data, offsets, counts, dtype=torch.float64)
    refuses("channels is 9", data, offsets, counts, channels=9)
    refuses("verify is 'sha'", data, offsets, counts, verify="sha")
    refuses("needs whole files", data, offsets, counts, starts=torch.zeros(len(counts)).long(), verify="md5")
    refuses("needs all bits", data, offsets, counts, dtype=torch.int16, verify="md5")
    refuses("starts are given", data, offsets, starts=torch.zeros(len(counts)).long())
    refuses("no backend 'dali'", data, offsets, counts, backend="dali")
    refuses("backend 'cuda' cannot serve this call", data, offsets, counts, backend="cuda")


def test_an_empty_batch_gives_no_samples() -> None:
    decoded = decode_flac(torch.empty(0, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), [])
    assert decoded.waveform.shape == (0,)
    assert decoded.errors.shape == (0,)


def test_native_code_comes_first_on_the_cpu_and_the_kernel_on_a_gpu() -> None:
    names = [name for name, _ in dispatch.report()["decode_flac"]]
    assert names == ["cuda", "native", "soundfile"]
    assert backend_cuda.rejects(device=torch.device("cuda", 0)) is None
    assert "on cpu" in str(backend_cuda.rejects(device=torch.device("cpu")))
