from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from slap_fast.integrations import ASTFeatureExtractor, ClapFeatureExtractor, WhisperFeatureExtractor

PAIRS = [
    (WhisperFeatureExtractor, transformers.WhisperFeatureExtractor),
    (ASTFeatureExtractor, transformers.ASTFeatureExtractor),
    (ClapFeatureExtractor, transformers.ClapFeatureExtractor),
]


def _clips(*lengths, seed=0):
    """Noise of varying loudness: float32 arrays of `lengths` samples."""
    generator = np.random.default_rng(seed)
    return [
        (generator.normal(size=length) * 0.2 * np.cos(np.arange(length) / 3000.0) ** 2).astype(np.float32)
        for length in lengths
    ]


def _assert_same(ours, theirs, *, scale, nats):
    """Compare keys, shapes, dtypes and values, which are `scale` times a logarithm or `nats` times a natural one."""
    assert set(ours) == set(theirs)
    for key in theirs:
        expected, actual = np.asarray(theirs[key]), np.asarray(ours[key])
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        if actual.dtype.kind == "f":
            # The error of a float32 spectrum is 1e-7 of its loudest amplitude in every bin. transformers computes in
            # float64, except for Whisper.
            below_peak = (expected.max(axis=(-2, -1), keepdims=True) - expected) / nats
            assert (np.abs(actual - expected) < 1e-4 * scale + 2e-7 * nats * np.exp(below_peak / 2)).all()
        else:
            assert np.array_equal(actual, expected)


def _both(pair, clips, *, scale, nats=None, settings=None, **call):
    """Compare the call of both classes on arrays, and of ours on tensors."""
    ours, theirs = (cls(**(settings or {})) for cls in pair)
    call = {"sampling_rate": theirs.sampling_rate, "return_tensors": "np", **call}
    np.random.seed(7)
    expected = theirs(clips, **call)
    as_tensors = [torch.from_numpy(clip) for clip in clips] if isinstance(clips, list) else torch.from_numpy(clips)
    for audio in (clips, as_tensors):
        np.random.seed(7)
        _assert_same(ours(audio, **call), expected, scale=scale, nats=nats or scale)


# 2 s instead of 30 s: transformers is slow on full clips.
WHISPER = {"chunk_length": 2}
LOG10 = 1.0 / np.log(10.0)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"return_attention_mask": True},
        {"do_normalize": True},
        {"do_normalize": True, "return_attention_mask": True},
        {"max_length": 24_001, "return_attention_mask": True},
        {"max_length": 10_000, "pad_to_multiple_of": 4096, "return_attention_mask": True},
        {"padding": "longest", "return_attention_mask": True},
        {"padding": True, "truncation": False, "pad_to_multiple_of": 1000},
        {"padding": "max_length", "truncation": False, "max_length": 50_000},
    ],
    ids=str,
)
def test_whisper_batches_equal_transformers(call):
    _both(PAIRS[0], _clips(5000, 32_000, 16_007, 40_000), scale=0.25, nats=0.25 * LOG10, settings=WHISPER, **call)


@pytest.mark.parametrize(
    ("settings", "call"),
    [
        ({}, {}),
        ({"feature_size": 128}, {}),
        ({}, {"padding": "do_not_pad"}),
        ({}, {"padding": False, "truncation": False, "return_attention_mask": True}),
        ({"return_attention_mask": True}, {}),
        ({"return_attention_mask": True}, {"return_attention_mask": False}),
        ({"padding_side": "left", "padding_value": 0.5}, {"return_attention_mask": True}),
        ({"hop_length": 200, "n_fft": 512, "feature_size": 40, "sampling_rate": 22_050}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [9001, 44_100, 50_000])
def test_whisper_single_clips_equal_transformers(settings, call, length):
    _both(PAIRS[0], _clips(length)[0], scale=0.25, nats=0.25 * LOG10, settings={**WHISPER, **settings}, **call)


def test_whisper_has_thirty_seconds_by_default():
    _both(PAIRS[0], _clips(100_000), scale=0.25, nats=0.25 * LOG10)


def test_whisper_dither_is_small_and_random():
    extractor = WhisperFeatureExtractor(**WHISPER, dither=1e-3)
    silence = torch.zeros(1000)
    first, second = (extractor(silence, sampling_rate=16_000).input_features for _ in range(2))
    assert not torch.equal(first, second)
    # Without dither each value is the floor, -1.5. With noise few bins are that quiet.
    assert (first > -1.5).float().mean() > 0.99
    assert first.max() < 0.0


def test_whisper_rejects_clips_that_stay_of_different_lengths():
    with pytest.raises(ValueError, match=r"5000 to 6000 samples.*'do_not_pad'.*longest"):
        WhisperFeatureExtractor()([np.zeros(5000), np.zeros(6000)], padding="do_not_pad", sampling_rate=16_000)


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_normalize": False}, {"max_length": 100, "num_mel_bins": 64, "mean": -5.0, "std": 3.0}],
    ids=str,
)
def test_ast_equals_transformers(settings):
    scale = 1.0 if settings.get("do_normalize") is False else 0.5 / settings.get("std", 4.5689974)
    if transformers.utils.is_speech_available():
        scale *= 10.0  # transformers then uses torchaudio, in float32; its NumPy path is float64
    # 100 frames are 16 240 samples.
    clips = _clips(30_000, 16_240, 16_239, 559, 400)
    _both(PAIRS[1], clips, scale=scale, settings=settings)
    _both(PAIRS[1], clips[0], scale=scale, settings=settings)


def test_ast_gives_only_padding_for_a_clip_shorter_than_a_window():
    extractor = ASTFeatureExtractor(do_normalize=False)
    features = extractor([torch.ones(399), torch.ones(0)], sampling_rate=16_000, return_tensors="pt").input_values
    assert torch.equal(features, torch.zeros(2, 1024, 128))


# 1 s instead of 10 s.
CLAP = {"max_length_s": 1}


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad", None, True])
def test_clap_batches_equal_transformers(truncation, padding):
    clips = _clips(100, 20_000, 48_000, 48_001, 48_479, 48_480, 48_960, 120_000)
    _both(PAIRS[2], clips, scale=1.0, nats=10.0 * LOG10, settings=CLAP, truncation=truncation, padding=padding)


@pytest.mark.parametrize("settings", [{}, {"truncation": "rand_trunc"}, {"padding": "repeat"}], ids=str)
@pytest.mark.parametrize("length", [30_000, 48_000, 70_000])
def test_clap_single_clips_equal_transformers(settings, length):
    _both(PAIRS[2], _clips(length)[0], scale=1.0, nats=10.0 * LOG10, settings={**CLAP, **settings})


def test_clap_marks_one_of_only_short_clips_as_longer_as_transformers_does():
    _both(PAIRS[2], _clips(1000, 2000, 3000, 4000), scale=1.0, nats=10.0 * LOG10, settings=CLAP, max_length=24_000)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, dtype=np.float32), "clip 0 has no samples"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\).*mono"),
        ([np.zeros(5000), np.zeros((2, 5000))], r"clip 1 has shape \(2, 5000\).*mono"),
        ([], r"raw_speech is \[\]"),
        (torch.zeros(0, 100), "batch of no clips"),
        (None, "raw_speech is None"),
    ],
    ids=str,
)
def test_input_that_is_not_audio_is_rejected(audio, message):
    with pytest.raises(ValueError, match=message):
        ClapFeatureExtractor(**CLAP)(audio, sampling_rate=48_000)


def test_clap_rejects_an_unknown_truncation():
    with pytest.raises(ValueError, match="truncation is 'rand'; choose 'rand_trunc' or 'fusion'"):
        ClapFeatureExtractor()(np.zeros(5000), truncation="rand", sampling_rate=48_000)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
class TestAny:
    def _extractor(self, pair, **settings):
        small = {"WhisperFeatureExtractor": WHISPER, "ClapFeatureExtractor": CLAP}.get(pair[0].__name__, {})
        return pair[0](**small, **settings)

    def test_lists_of_numbers_are_accepted(self, pair):
        extractor = self._extractor(pair)
        name = extractor.model_input_names[0]
        clip = _clips(3000)[0]
        call = {"sampling_rate": extractor.sampling_rate, "return_tensors": "np"}
        expected = extractor(clip, **call)[name]
        for audio in (
            clip.tolist(),
            tuple(clip.tolist()),
            [clip.tolist()],
            [clip],
            clip[None],
            clip.astype(np.float64),
        ):
            assert np.array_equal(extractor(audio, **call)[name], expected)

    def test_features_have_the_type_of_the_audio_or_of_return_tensors(self, pair):
        extractor = self._extractor(pair)
        name = extractor.model_input_names[0]
        array = _clips(3000)[0]
        for audio in (array, torch.from_numpy(array)):
            for return_tensors, kind in (("pt", torch.Tensor), ("np", np.ndarray), (None, type(audio))):
                features = extractor(audio, sampling_rate=extractor.sampling_rate, return_tensors=return_tensors)[name]
                assert isinstance(features if return_tensors else features[0], kind)

    def test_settings_survive_saving_and_loading_as_either_class(self, pair, tmp_path):
        ours, theirs = pair
        extractor = self._extractor(pair, padding_value=0.25)
        extractor.save_pretrained(tmp_path)
        for loaded in (ours.from_pretrained(tmp_path), theirs.from_pretrained(tmp_path)):
            assert loaded.to_dict() == extractor.to_dict()
        automatic = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(automatic) is theirs
        json.dumps(extractor.to_dict(), default=str)

    def test_another_rate_is_rejected(self, pair):
        with pytest.raises(ValueError, match="sampling_rate is 8000"):
            self._extractor(pair)(np.zeros(5000), sampling_rate=8000)

    def test_gradients_reach_the_audio(self, pair):
        extractor = self._extractor(pair)
        audio = torch.from_numpy(_clips(4000)[0]).requires_grad_()
        features = extractor(audio, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        features[extractor.model_input_names[0]].sum().backward()
        assert audio.grad is not None
        assert torch.isfinite(audio.grad).all()
        assert audio.grad.abs().sum() > 0

    @pytest.mark.gpu
    def test_features_are_on_the_device_of_the_audio(self, pair):
        extractor = self._extractor(pair)
        clips = [torch.from_numpy(clip).cuda() for clip in _clips(3000, 60_000)]
        call = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt"}
        np.random.seed(1)
        on_gpu = extractor(clips, **call)
        assert all(value.device.type == "cuda" for value in on_gpu.values())
        np.random.seed(1)
        on_cpu = extractor([clip.cpu() for clip in clips], **call)
        for name, value in on_gpu.items():
            torch.testing.assert_close(value.cpu(), on_cpu[name], rtol=1e-4, atol=1e-4)


def test_transformers_is_imported_for_the_extractors_only():
    code = "import sys; from slap_fast.integrations import MelSpectrogram; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
