from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from slap_fast import native
from slap_fast.audio.flac_seek_table import POINT, TABLE_OFFSET
from slap_fast.data.decoding import (
    DaliDecoder,
    DecodeFailure,
    Decoder,
    DecoderUnavailableError,
    GpuDecoder,
    NativeDecoder,
    SoundfileDecoder,
    make_decoder,
)
from slap_fast.data.loading.collate import pack_waveforms
from slap_fast.ops import dispatch
from slap_fast.ops.decode_flac import BACKENDS
from tests.data.builders import DECODERS, decoder_of, encode, prepared
from tests.data.fuzzing import corruptions


def random_pcm(samples: int, seed: int = 0) -> np.ndarray:
    """`[samples]` int16: noise with a slow envelope, including both extreme values."""
    generator = np.random.default_rng([seed, samples])
    envelope = np.abs(np.sin(np.arange(samples) / 900.0 + generator.random()))
    pcm = (generator.standard_normal(samples) * envelope * 9000).clip(-32768, 32767).astype(np.int16)
    pcm[:2] = (-32768, 32767)[: min(2, samples)]
    return pcm


def claim_length(flac: bytes, samples: int) -> bytes:
    """The same FLAC with another length in its header; 0 is "unknown"."""
    field = int.from_bytes(flac[21:26], "big") >> 36 << 36 | samples
    return flac[:21] + field.to_bytes(5, "big") + flac[26:]


def same(first: Sequence[Tensor | DecodeFailure], second: Sequence[Tensor | DecodeFailure]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(request.param)


def decode_one(decoder: Decoder, blob: bytes, samples: int) -> Tensor | DecodeFailure:
    (outcome,) = decoder.decode([blob], [samples])
    return outcome


def test_flac_decodes_to_its_integers_divided_by_32768(decoder: Decoder) -> None:
    lengths = [16_000, 1, 33, 4096, 30_001]
    pcm = [random_pcm(length) for length in lengths]
    decoded = decoder.decode([encode(audio) for audio in pcm] + [prepared(audio) for audio in pcm], 2 * lengths)
    for audio, waveform in zip([*pcm, *pcm], decoded, strict=True):
        assert isinstance(waveform, Tensor)
        assert waveform.dtype == torch.float32
        assert torch.equal(waveform, torch.from_numpy(audio.astype(np.float32) / 32768))


def test_batches_of_any_size_can_follow_each_other(decoder: Decoder) -> None:
    for count in (3, 8, 1, 0, 19, 2):
        pcm = [random_pcm(500 + item, seed=count) for item in range(count)]
        decoded = decoder.decode([encode(audio) for audio in pcm], [len(audio) for audio in pcm])
        expected = [torch.from_numpy(audio.astype(np.float32) / 32768) for audio in pcm]
        assert same(decoded, expected)


def test_a_crop_returns_only_its_samples_and_allocates_no_more(decoder: Decoder) -> None:
    pcm = [random_pcm(30_000, seed=item) for item in range(5)]
    crops = [(0, 16_000), None, (13_999, 29_999), (14_000, 30_000), (29_999, 30_000)]
    stretches = [audio[slice(*(crop or (None,)))] for audio, crop in zip(pcm, crops, strict=True)]
    for encoded in (encode, prepared):
        decoded = decoder.decode([encoded(audio) for audio in pcm], [30_000] * 5, crops)
        assert same(decoded, [torch.from_numpy(audio.astype(np.float32) / 32768) for audio in stretches])
        cropped = decoder.decode([encoded(pcm[0])], [30_000], [(5, 7)])[0]
        assert isinstance(cropped, Tensor)
        assert cropped.untyped_storage().nbytes() == 2 * 4


@pytest.mark.parametrize("crop", [(9_000, 10_000), (0, 10_000)])
def test_a_crop_of_a_damaged_clip_is_a_failure(decoder: Decoder, crop: tuple[int, int]) -> None:
    blob = encode(random_pcm(30_000))
    half, shorter = decoder.decode([blob[: len(blob) // 4], blob], [30_000, 29_999], [crop, crop])
    assert isinstance(half, DecodeFailure)
    assert isinstance(shorter, DecodeFailure)
    assert "the index says 29999" in shorter.reason


def test_a_batch_is_contiguous_in_memory(decoder: Decoder) -> None:
    lengths = [700, 1200, 3]
    decoded = decoder.decode([encode(random_pcm(length)) for length in lengths], lengths)
    waveforms = [waveform for waveform in decoded if isinstance(waveform, Tensor)]
    assert len(waveforms) == 3
    assert pack_waveforms(waveforms).data_ptr() == waveforms[0].data_ptr()


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoded_batch_outlives_later_batches_and_the_decoder(kind: str) -> None:
    short_lived = decoder_of(kind, 1, 2)
    pcm = random_pcm(5000)
    kept = decode_one(short_lived, encode(pcm), 5000)
    for seed in range(4):
        decode_one(short_lived, encode(random_pcm(5000, seed=seed + 1)), 5000)
    del short_lived
    assert isinstance(kept, Tensor)
    assert torch.equal(kept, torch.from_numpy(pcm.astype(np.float32) / 32768))


def test_a_decoder_can_be_shared_by_threads(decoder: Decoder) -> None:
    start = threading.Barrier(4)

    def work(seed: int) -> bool:
        start.wait()
        matches = []
        for turn in range(10):
            pcm = random_pcm(300 + turn, seed=seed)
            decoded = decode_one(decoder, encode(pcm), len(pcm))
            matches.append(same([decoded], [torch.from_numpy(pcm.astype(np.float32) / 32768)]))
        return all(matches)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def bad_blobs() -> dict[str, tuple[bytes, str]]:
    """Files that are not 4000 good samples, each with a pattern of the expected reason."""
    flac = encode(random_pcm(4000))
    flipped = bytearray(flac)
    flipped[len(flac) // 2] ^= 0xFF
    nan = random_pcm(4000).astype(np.float32) / 32768
    nan[[17, 3000]] = (np.nan, np.inf)
    wav = encode(random_pcm(4000), format="WAV")
    return {
        "text": (b"this is not audio at all, but a caption\n" * 9, "not readable"),
        "empty": (b"", "0 bytes"),
        "truncated FLAC": (flac[: len(flac) // 2], "not readable"),
        "FLAC without frames": (flac[:60], "not readable"),
        "a few bytes": (flac[:20], "not readable"),
        "flipped bytes": (bytes(flipped), "not readable"),
        "NaN float WAV": (encode(nan, format="WAV", subtype="FLOAT"), "2 of 4000 samples are NaN or infinite"),
        "truncated WAV": (wav[: len(wav) // 2], "the index says 4000"),
        "empty WAV": (encode(random_pcm(0), format="WAV"), "the audio has 0 samples"),
        "wrong rate": (encode(random_pcm(4000), 44_100), "44100 Hz, not 16000 Hz; run `slap-fast prepare`"),
        "stereo": (encode(np.stack([random_pcm(4000)] * 2, 1)), "2 channels.*slap-fast prepare"),
        "too short": (encode(random_pcm(3999)), "3999 samples, the index says 4000"),
        "too long": (encode(random_pcm(4001)), "4001 samples, the index says 4000"),
        "unknown length": (claim_length(flac, 0), "does not say its length; run `slap-fast prepare`"),
        "claims 275 GB": (claim_length(flac, 2**36 - 1), "68719476735 samples, the index says 4000"),
        "promises more": (claim_length(encode(random_pcm(3000)), 4000), "not readable"),
        "random bytes": (np.random.default_rng(0).bytes(5000), "not readable"),
    }


@pytest.mark.parametrize("kind", bad_blobs())
def test_a_bad_clip_gets_a_reason_and_leaves_the_others_intact(decoder: Decoder, kind: str) -> None:
    blob, reason = bad_blobs()[kind]
    good = [random_pcm(4000, seed=seed) for seed in range(2)]
    expected = [torch.from_numpy(audio.astype(np.float32) / 32768) for audio in good]
    before, failure, after = decoder.decode([encode(good[0]), blob, encode(good[1])], [4000] * 3)
    assert same([before, after], expected)
    assert isinstance(failure, DecodeFailure)
    assert re.search(reason, failure.reason)
    assert same(decoder.decode([encode(good[0])], [4000]), expected[:1])


def test_a_clip_without_samples_is_a_failure(decoder: Decoder) -> None:
    outcome = decode_one(decoder, encode(random_pcm(0), format="WAV"), 0)
    assert outcome == DecodeFailure("the clip has no samples")


FORMATS = [
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_24"),
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("AIFF", "PCM_16"),
    ("OGG", "VORBIS"),
]


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
def test_other_formats_decode_as_soundfile_reads_them(decoder: Decoder, format: str, subtype: str) -> None:
    blob = encode(random_pcm(8000), format=format, subtype=subtype)
    expected, _ = soundfile.read(io.BytesIO(blob), dtype="float32")
    assert same([decode_one(decoder, blob, 8000)], [torch.from_numpy(expected)])


@pytest.mark.parametrize(
    ("format", "subtype"), [("FLAC", "PCM_16"), ("FLAC, prepared", ""), ("FLAC", "PCM_24"), *FORMATS[2:]]
)
def test_corrupted_bytes_never_raise_and_decoders_agree(format: str, subtype: str) -> None:
    pcm = random_pcm(3000)
    blob = encode(pcm, format=format, subtype=subtype) if subtype else prepared(pcm)
    generator = np.random.default_rng(1)
    corrupted = [bad for _ in range(25) for bad in corruptions(blob, generator)]
    by_soundfile = make_decoder("soundfile").decode(corrupted, [3000] * len(corrupted))
    assert any(isinstance(outcome, DecodeFailure) for outcome in by_soundfile)
    assert all(
        outcome.isfinite().all() and len(outcome) == 3000 for outcome in by_soundfile if isinstance(outcome, Tensor)
    )
    assert same(GpuDecoder("cpu").decode(corrupted, [3000] * len(corrupted)), by_soundfile)
    if native.unavailable() is None:
        assert same(make_decoder("native", 2).decode(corrupted, [3000] * len(corrupted)), by_soundfile)
    pytest.importorskip("nvidia.dali")
    # Batch size 1 tests the file itself; in a batch of 8, one bad file makes DALI fail the whole batch.
    for batch_size in (1, 8):
        assert same(make_decoder("dali", 2, batch_size).decode(corrupted, [3000] * len(corrupted)), by_soundfile)


@pytest.mark.parametrize("kind", DECODERS[2:])
@pytest.mark.parametrize("encoded", [prepared, encode])
def test_decoders_agree_on_crops_of_damaged_files(kind: str, encoded: Callable[[np.ndarray], bytes]) -> None:
    blob = encoded(random_pcm(30_000))
    generator = np.random.default_rng(2)
    damaged = [bad for _ in range(20) for bad in (*corruptions(blob, generator), *header_damage(blob, generator))]
    # Begins and ends in the middle of frames, at their borders, and at the ends of the file.
    crops = [(0, 5000), (5000, 9000), (8192, 16_384), (8100, 8150), (25_000, 30_000), (0, 30_000), (15_000, 15_001)]
    chosen = [crops[number % len(crops)] for number in range(len(damaged))]
    lengths = [30_000] * len(damaged)
    by_soundfile = make_decoder("soundfile").decode(damaged, lengths, chosen)
    assert len({type(outcome) for outcome in by_soundfile}) == 2
    assert same(decoder_of(kind).decode(damaged, lengths, chosen), by_soundfile)


@pytest.mark.parametrize("kind", DECODERS[1:])
def test_decoders_agree_on_damaged_headers(kind: str) -> None:
    generator = np.random.default_rng(3)
    files = (prepared(random_pcm(12_000)), encode(random_pcm(12_000)))
    damaged = [bad for _ in range(25) for file in files for bad in header_damage(file, generator)]
    by_soundfile = make_decoder("soundfile").decode(damaged, [12_000] * len(damaged))
    assert same(decoder_of(kind, max_batch_size=1).decode(damaged, [12_000] * len(damaged)), by_soundfile)


def test_bytes_that_look_like_a_seek_table_are_none(decoder: Decoder) -> None:
    pcm = random_pcm(9000)
    blob = encode(pcm)
    # The only block is a STREAMINFO that is too long, which libFLAC reads; its table would end beyond the file.
    streaminfo = blob[8:42] + b"\x03\xff\xff\xff"
    odd = b"fLaC\x80" + len(streaminfo).to_bytes(3, "big") + streaminfo + blob[blob.index(b"\xff\xf8") :]
    (outcome,) = decoder.decode([odd], [9000], [(5000, 9000)])
    assert same([outcome], [torch.from_numpy(pcm[5000:].astype(np.float32) / 32768)])


def header_damage(blob: bytes, generator: np.random.Generator) -> list[bytes]:
    """The file with one to four bytes of its metadata changed: block headers, seek points, lengths of comments."""
    frames = blob.index(b"\xff\xf8")
    damaged = []
    for count in range(1, 5):
        data = bytearray(blob)
        for place in generator.integers(8, frames, count):
            flipped = data[place] ^ 1 << generator.integers(8)
            data[place] = generator.integers(256) if generator.random() < 0.5 else flipped
        damaged.append(bytes(data))
    return damaged


def test_damage_beside_a_crop_does_not_fail_it(decoder: Decoder) -> None:
    pcm = random_pcm(40_960)
    blob = bytearray(prepared(pcm))
    points = np.frombuffer(bytes(blob), POINT, 10, TABLE_OFFSET + 4)
    first = blob.index(b"\xff\xf8")
    for frame in (1, 4, 6, 9):
        blob[first + int(points["offset"][frame]) + 500] ^= 1
    for start, end, intact in (
        (8192, 16_384, True),
        (20_480, 24_576, True),
        (28_672, 30_000, True),
        (8191, 9000, False),
        (30_000, 40_960, False),
    ):
        (outcome,) = decoder.decode([bytes(blob)], [40_960], [(start, end)])
        assert isinstance(outcome, Tensor) == intact, (start, end)
        if isinstance(outcome, Tensor):
            assert torch.equal(outcome, torch.from_numpy(pcm[start:end].astype(np.float32) / 32768))


def test_the_sample_rate_can_be_changed() -> None:
    blob = encode(random_pcm(2000), 8000)
    assert isinstance(decode_one(make_decoder("auto", sample_rate=8000), blob, 2000), Tensor)
    assert isinstance(decode_one(make_decoder("auto"), blob, 2000), DecodeFailure)


def test_auto_is_native_code_where_it_is_built() -> None:
    assert isinstance(decoder_of("native"), NativeDecoder)
    assert isinstance(make_decoder("auto"), NativeDecoder)


@pytest.fixture
def no_native_decoding() -> Iterator[None]:
    dispatch.register("decode_flac", [dispatch.Backend("native", lambda: "no compiler"), dispatch.Backend("soundfile")])
    yield
    dispatch.register("decode_flac", [dispatch.Backend(name, b.unavailable, b.rejects) for name, b in BACKENDS.items()])


@pytest.mark.usefixtures("no_native_decoding")
def test_without_native_code_auto_is_dali_and_native_raises_with_the_reason() -> None:
    with pytest.raises(DecoderUnavailableError, match=r"loading.decoder=native .*no compiler.*loading.decoder=auto"):
        make_decoder("native")
    pytest.importorskip("nvidia.dali")
    assert isinstance(make_decoder("auto"), DaliDecoder)


@pytest.mark.usefixtures("no_native_decoding")
def test_without_both_auto_is_soundfile_and_dali_raises_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert isinstance(make_decoder("auto"), SoundfileDecoder)
    with pytest.raises(ImportError, match=r"pip install 'slap-fast\[dali\]'"):
        make_decoder("dali")


def test_the_gpu_decoder_without_a_gpu_raises_with_the_reason() -> None:
    with pytest.raises(DecoderUnavailableError, match=r"loading.decoder=gpu .*\(cuda: .*loading.decoder=auto"):
        make_decoder("gpu", device="cpu")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_decoder("torchcodec"), "'torchcodec'; choose one of auto, dali"),  # type: ignore[arg-type]
        (lambda: make_decoder("soundfile", 0), "threads is 0"),
        (lambda: make_decoder("auto", 0), "threads is 0"),
    ],
)
def test_invalid_arguments_raise(make: Callable[[], Decoder], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_dali_batch_size_below_one_raises() -> None:
    pytest.importorskip("nvidia.dali")
    with pytest.raises(ValueError, match="max_batch_size is 0"):
        make_decoder("dali", 1, 0)
