"""Clips that are longer than those of training: in windows, the same for every batch, source and interface."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slap_fast.config.loading import load_run_config
from slap_fast.models.hugging_face.configuration import SlapConfig
from slap_fast.models.hugging_face.modeling import SlapModel
from slap_fast.models.long_audio import dense_windows
from slap_fast.models.slap import SLAP
from slap_fast.models.windows import cut_windows, mean_embedding, window_spans
from slap_fast.ops import MelConfig
from tests.models.builders import TINY, random_clips
from tests.models.saved import tiny_slap

RATE = 16_000
SHORT = dataclasses.replace(TINY, max_duration=2.0)  # windows of 2 s every second


@pytest.fixture(scope="module")
def model() -> SLAP:
    torch.manual_seed(0)
    model = SLAP(SHORT).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_a_long_clip_is_the_mean_of_its_windows_whatever_the_batch_and_the_source(model: SLAP, tmp_path: Path) -> None:
    short, long, exact = random_clips([1.0, 5.4, 2.0])
    together = model.encode_audio([short, long, exact], sampling_rate=RATE)
    spans = window_spans(len(long), 2 * RATE, RATE)
    assert spans[-1] == (int(3.4 * RATE), len(long))
    windows = model.encode_audio([long[begin:end] for begin, end in spans], sampling_rate=RATE)
    assert torch.equal(together[1], torch.from_numpy(mean_embedding(windows.numpy())))
    for clip, row in zip((short, long, exact), together, strict=True):
        assert torch.equal(model.encode_audio([clip], sampling_rate=RATE)[0], row)
    whole = model.encode_audio([short, long, exact], sampling_rate=RATE, long="whole")
    assert torch.equal(whole[[0, 2]], together[[0, 2]])
    assert not torch.allclose(whole[1], together[1], atol=1e-3)

    path = tmp_path / "long.wav"
    soundfile.write(path, long.numpy(), RATE, subtype="FLOAT")
    with path.open("rb") as file:
        for form in (path, path.read_bytes(), file, long.numpy(), (RATE, long)):
            assert torch.equal(model.encode_audio([form], sampling_rate=RATE)[0], together[1])


def test_training_and_transformers_embed_long_clips_alike(model: SLAP) -> None:
    clips = random_clips([3.3, 0.5, 2.6])
    expected = model.encode_audio(clips, sampling_rate=RATE)
    clips[0].requires_grad_()
    found = model(clips, sampling_rate=RATE).audio
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found.sum().backward()
    assert clips[0].grad is not None
    assert bool(clips[0].grad.ne(0).any())
    hugging_face = SlapModel(SlapConfig(**dataclasses.asdict(model.config)), model).eval()
    padded = torch.nn.utils.rnn.pad_sequence([clip.detach() for clip in clips], batch_first=True)
    lengths = torch.tensor([len(clip) for clip in clips])
    with torch.no_grad():
        assert torch.equal(hugging_face.get_audio_features(padded, lengths).pooler_output, expected)


def test_columns_of_a_long_clip_have_the_number_and_times_of_the_whole(model: SLAP) -> None:
    (clip,) = random_clips([7.7])
    (columns,) = model.encode_audio([clip], sampling_rate=RATE, dense=True)
    (whole,) = model.encode_audio([clip], sampling_rate=RATE, dense=True, long="whole")
    assert columns.shape == whole.shape == (model.config.num_columns(len(clip)), 32)
    # A column is most like the one at the same time in the features of the whole.
    nearest = (columns @ whole.T).argmax(1)
    assert (nearest == torch.arange(len(columns))).float().mean() > 0.9
    short = clip[: 2 * RATE]
    for long in ("windows", "whole"):
        assert torch.equal(
            model.encode_audio([short], sampling_rate=RATE, dense=True, long=long)[0],
            model.encode_audio([short, clip], sampling_rate=RATE, dense=True)[0],
        )


MELS = [
    SHORT.mel,
    dataclasses.replace(SHORT.mel, padding="reflect", frame_span="n_fft"),
    dataclasses.replace(SHORT.mel, padding="kaldi"),
    dataclasses.replace(SHORT.mel, drop_last_frame=True),
]


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(400, 200_000),
    cuts=st.lists(st.integers(1, 60_000), max_size=8),
    max_duration=st.floats(0.16, 5.0),
    mel=st.sampled_from(MELS),
)
def test_windows_of_a_stream_use_every_column_once(
    samples: int, cuts: list[int], max_duration: float, mel: MelConfig
) -> None:
    config = dataclasses.replace(SHORT, mel=mel, max_duration=max_duration)
    assume(config.num_columns(samples) > 0)  # a clip of less than a frame has no columns
    clip = torch.arange(samples, dtype=torch.float32)
    bounds = [0, *(at for at in np.cumsum(cuts).tolist() if at < samples), samples]
    blocks = [clip[begin:end] for begin, end in itertools.pairwise(bounds)]
    found = list(dense_windows(config, blocks))
    position = 0
    for window in found:
        assert window.first + window.begin == position
        assert 0 <= window.begin < window.end <= config.num_columns(len(window.samples))
        begin = window.first * config.column_samples
        assert torch.equal(window.samples, clip[begin : begin + len(window.samples)])
        position = window.first + window.end
    assert position == config.num_columns(samples)
    if len(found) > 1:
        assert max(len(window.samples) for window in found) <= max(max_duration * RATE, 2 * config.column_samples)
    unbroken = list(dense_windows(config, [clip]))
    assert [(w.first, w.begin, w.end, len(w.samples)) for w in found] == [
        (w.first, w.begin, w.end, len(w.samples)) for w in unbroken
    ]


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 500),
    cuts=st.lists(st.integers(1, 200), max_size=8),
    hop=st.integers(1, 60),
    extra=st.integers(0, 60),
)
def test_windows_of_a_stream_are_those_of_the_whole(samples: int, cuts: list[int], hop: int, extra: int) -> None:
    clip = np.arange(samples, dtype=np.float32)
    bounds = [0, *(at for at in np.cumsum(cuts).tolist() if at < samples), samples]
    blocks = [clip[begin:end] for begin, end in itertools.pairwise(bounds)]
    found = list(cut_windows(blocks, hop + extra, hop))
    assert [(begin, begin + len(window)) for begin, window in found] == window_spans(samples, hop + extra, hop)
    assert all(np.array_equal(window, clip[begin : begin + len(window)]) for begin, window in found)


def test_the_longest_duration_is_saved_with_the_model_and_30_s_for_older_ones(tmp_path: Path) -> None:
    tiny_slap().save_pretrained(tmp_path / "old")
    config = tmp_path / "old" / "config.json"
    config.write_text(config.read_text().replace('  "max_duration": 30.0,\n', ""))
    assert "max_duration" not in config.read_text()
    loaded = SLAP.from_pretrained(tmp_path / "old")
    assert loaded.config.max_duration == 30.0
    loaded.config = dataclasses.replace(loaded.config, max_duration=12.5)
    loaded.save_pretrained(tmp_path / "new")
    assert SLAP.from_pretrained(tmp_path / "new").config.max_duration == 12.5


@pytest.mark.parametrize("dense", [False, True])
def test_an_unknown_way_is_an_error(model: SLAP, dense: bool) -> None:
    with pytest.raises(ValueError, match="long is 'crop'; choose one of 'windows', 'whole'"):
        model.encode_audio(random_clips([0.5]), sampling_rate=RATE, dense=dense, long="crop")  # type: ignore[call-overload]


def test_a_run_stores_the_longest_duration_of_its_clips() -> None:
    config = load_run_config("paper", ["data.train=unused", "data.max_duration=12.5"])
    assert config.recipe.model.max_duration == 12.5
