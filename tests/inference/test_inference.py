"""Reading clips ahead, batching, embedding and captioning them, and reporting unreadable ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slap_fast.audio.errors import AudioError
from slap_fast.inference.audio_inputs import AudioInput, NoReadableClipError, Skipped, batch_by_duration, read_ahead
from slap_fast.inference.caption import generate_captions
from slap_fast.inference.embed import embed_audio, embed_texts
from tests.evaluation.fakes import LoudnessModel


def constant(value: float, samples: int = 1600) -> AudioInput:
    return AudioInput(f"constant-{value}", lambda rate: np.full(samples * rate // 16_000, value, np.float32))


def broken(name: str) -> AudioInput:
    def read(rate: int) -> np.ndarray:
        raise AudioError("unreadable", "it is torn")

    return AudioInput(name, read)


def test_clips_are_read_in_order_and_unreadable_ones_are_recorded() -> None:
    inputs = [constant(value / 100) for value in range(40)]
    inputs.insert(0, broken("first"))
    inputs.insert(17, broken("middle"))
    inputs.append(broken("last"))
    skipped: list[Skipped] = []
    names = [clip.name for clip, _ in read_ahead(inputs, 16_000, skipped, threads=3)]
    assert names == [f"constant-{value / 100}" for value in range(40)]
    assert [clip.name for clip in skipped] == ["first", "middle", "last"]
    assert all("it is torn" in clip.reason for clip in skipped)


def test_a_bug_is_not_mistaken_for_bad_audio() -> None:
    def read(rate: int) -> np.ndarray:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        list(read_ahead([AudioInput("clip", read)], 16_000, []))


def test_batches_have_at_most_the_given_duration_and_at_least_one_clip() -> None:
    lengths = [3, 3, 3, 12, 1, 1]
    clips = [(constant(0.1), np.zeros(length, np.float32)) for length in lengths]
    sizes = [[len(waveform) for _, waveform in batch] for batch in batch_by_duration(clips, 1, seconds=6.0)]
    assert sizes == [[3, 3], [3], [12], [1, 1]]


def test_embeddings_are_those_of_the_readable_clips() -> None:
    model = LoudnessModel()
    audio = embed_audio(model, [constant(0.2), broken("torn"), constant(0.7)])
    assert [clip.name for clip in audio.inputs] == ["constant-0.2", "constant-0.7"]
    assert [clip.name for clip in audio.skipped] == ["torn"]
    torch.testing.assert_close(audio.embeddings, embed_texts(model, ["0.2", "0.7"]))


def test_no_readable_clip_is_an_error_with_the_first_reason() -> None:
    with pytest.raises(
        NoReadableClipError, match="none of 2 clips could be read; the first is a: unreadable: it is torn"
    ):
        embed_audio(LoudnessModel(), [broken("a"), broken("b")])
    with pytest.raises(NoReadableClipError, match="no clips"):
        embed_audio(LoudnessModel(), [])
    empty = embed_audio(LoudnessModel(), [broken("a")], allow_empty=True)
    assert empty.embeddings.shape == (0, LoudnessModel().config.audio.width)
    assert [clip.name for clip in empty.skipped] == ["a"]


def test_captions_have_their_references() -> None:
    referenced = AudioInput("clip", constant(0.25).read, lambda: {"captions": ["quiet", "not loud"]})
    skipped: list[Skipped] = []
    generated = list(generate_captions(LoudnessModel(), [referenced, broken("torn"), constant(0.5)], skipped))
    assert [(entry.name, entry.caption, entry.references) for entry in generated] == [
        ("clip", "loudness 0.25", ("quiet", "not loud")),
        ("constant-0.5", "loudness 0.50", ()),
    ]
    assert [clip.name for clip in skipped] == ["torn"]
