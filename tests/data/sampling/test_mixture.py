from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex, StoredClip
from slap_fast.data.sampling.mixture import Mixture
from tests.data.builders import make_clip, write_dataset


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> list[ClipIndex]:
    folder = tmp_path_factory.mktemp("mixture")
    return [
        write_dataset(folder / "few", [make_clip(number) for number in range(4)], clips_per_shard=3),
        write_dataset(folder / "many", [make_clip(number) for number in range(4, 13)]),
    ]


def test_clips_are_numbered_consecutively(indexes: list[ClipIndex]) -> None:
    mixture = Mixture([indexes[0], indexes[1]], [1, 2])
    assert len(mixture) == 13
    for clip in range(13):
        index, row = (indexes[0], clip) if clip < 4 else (indexes[1], clip - 4)
        assert mixture.records(np.array([clip]))[0] == index.records[row]
        assert mixture.name(clip) == index.key(row)
        (stored,) = mixture.read_clips(np.array([clip]))
        assert isinstance(stored, StoredClip)
        assert bytes(stored.audio) == index.read_audio(row) == make_clip(clip).audio
        assert stored.metadata == index.read_metadata(row)
        assert mixture.shard_name(clip) == str(index.folder / index.shard_name(row))
    clips = np.array([12, 0, 4, 3, 4])
    assert mixture.records(clips).tolist() == [mixture.records(clips[[place]])[0].tolist() for place in range(5)]
    for outside in (-1, 13):
        with pytest.raises(IndexError, match=f"clip {outside} is not in"):
            mixture.name(outside)


def test_a_mixture_of_one_dataset_behaves_like_the_dataset(indexes: list[ClipIndex]) -> None:
    mixture = Mixture.open([(indexes[0].folder, 5.0)])
    assert mixture.shard_name(3) == "shard-000001.tar"
    assert mixture.weights == [1]
    assert mixture.drawn_before(123) == [123]
    assert mixture.mel_statistics() == (0.0, 1.0)


def test_counts_follow_the_weights_exactly(indexes: list[ClipIndex]) -> None:
    mixture = Mixture([*indexes, indexes[0]], [0.7, 0.1, 0.2])
    assert mixture.drawn_before(10**18) == [7 * 10**17, 10**17, 2 * 10**17]
    counts = np.array([mixture.drawn_before(clips) for clips in range(400)])
    assert (np.diff(counts, axis=0) >= 0).all()
    assert (counts.sum(1) == np.arange(400)).all()


def test_mel_statistics_match_the_sampled_clips(tmp_path: Path) -> None:
    indexes = [write_dataset(tmp_path / str(n), [make_clip(n)]) for n in range(2)]
    # The second has half as many clips of twice the length: both contribute equally many frames.
    for index, mean, std, seconds in zip(indexes, (1.0, 3.0), (2.0, 4.0), (5.0, 10.0), strict=True):
        index.info.update(mel_mean=mean, mel_std=std, seconds=seconds)
    mean, std = Mixture(indexes, [2, 1]).mel_statistics()
    assert (mean, std) == pytest.approx((2.0, math.sqrt((4 + 16) / 2 + 1)))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, math.nan], [math.inf, 1.0], [-1.0, 1.0]])
def test_weights_must_be_positive_and_one_per_dataset(indexes: list[ClipIndex], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Mixture(indexes, weights)


def test_a_mixture_without_a_dataset_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mixture([], [])
    with pytest.raises(DatasetError, match="not a folder"):
        Mixture.open([(tmp_path / "nowhere", 1.0)])
