from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slap_fast.synthetic import (
    ALL_EVENTS,
    EVENTS,
    NEW_EVENTS,
    SAMPLE_RATE,
    SyntheticClip,
    iter_synthetic,
    synthetic_clip,
)
from slap_fast.synthetic.captions import NOISE, NUMBERS, TIMES
from slap_fast.synthetic.combinations import Combination, validation_order
from slap_fast.synthetic.event import Event
from slap_fast.synthetic.rendering import render
from slap_fast.synthetic.scenes import draw_scene

TRAIN = list(iter_synthetic("train", 1_500, seed=11))
VALIDATION = list(iter_synthetic("validation", 300, seed=12))
NEW_TRAIN = list(iter_synthetic("train", 400, seed=11, events="new"))
NEW_VALIDATION = list(iter_synthetic("validation", 100, seed=12, events="new"))
CLIPS = TRAIN[:400] + VALIDATION + NEW_TRAIN + NEW_VALIDATION


def digest(clips: list[SyntheticClip]) -> str:
    sha = hashlib.sha256()
    for clip in clips:
        sha.update(repr((clip.key, clip.captions, clip.metadata)).encode())
        sha.update(clip.render().tobytes())
    return sha.hexdigest()


def render_alone(event: str, draw: int, structure: str = "single") -> np.ndarray:
    scene = draw_scene(Combination((event,), structure), np.random.default_rng([draw, 7]))  # type: ignore[arg-type]
    return render(scene, draw, 0, stream=9)


def log_spectra(waveform: np.ndarray) -> np.ndarray:
    """`[frames, 32]` log power in mel-like bands from 80 Hz to 7 kHz, clamped to 9 nats below the maximum."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    edges = 700 * np.expm1(np.linspace(np.log1p(80 / 700), np.log1p(7_000 / 700), 33))
    bins = np.unique((edges * 512 / 16_000).astype(int))
    bands = np.log(np.add.reduceat(power[:, : bins[-1]], bins[:-1], axis=1) + 1e-9)
    return np.maximum(bands - bands.max(), -9.0)


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def mentions(event: Event) -> re.Pattern[str]:
    """Matches every phrase that names the event in a caption."""
    names = [event.noun.text, *filter(None, event.unit)]
    for wording in event.wordings:
        verbs = (wording.finite, wording.gerund, f"is {wording.gerund}", f"are {wording.gerund}")
        names += [f"{wording.subject} {verb}" for verb in verbs]
    return re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")


MENTIONS = {name: mentions(event) for name, event in ALL_EVENTS.items()}


def without_noise_remark(caption: str) -> str:
    for remark in NOISE:
        caption = caption.removesuffix(f", {remark}")
    return caption


# Determinism


def test_same_seed_gives_the_same_bytes_in_another_process() -> None:
    program = (
        "import hashlib\n"
        "from slap_fast.synthetic import iter_synthetic\n"
        "sha = hashlib.sha256()\n"
        "for split in ('train', 'validation'):\n"
        "    for clip in iter_synthetic(split, 12, seed=3):\n"
        "        sha.update(repr((clip.key, clip.captions, clip.metadata)).encode())\n"
        "        sha.update(clip.render().tobytes())\n"
        "print(sha.hexdigest())\n"
    )
    root = Path(__file__).parents[2]
    there = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest([*iter_synthetic("train", 12, 3), *iter_synthetic("validation", 12, 3)])


def test_a_clip_depends_only_on_split_seed_and_index() -> None:
    assert digest([synthetic_clip("train", 37, 5)]) == digest(list(iter_synthetic("train", 40, 5))[37:38])
    assert digest([synthetic_clip("train", 2**63, 2**64 - 1)]) == digest([synthetic_clip("train", 2**63, 2**64 - 1)])


def test_seeds_and_splits_differ() -> None:
    digests = {digest(list(iter_synthetic("train", 3, seed))) for seed in range(5)}
    assert len(digests) == 5
    waveforms = {clip.render().tobytes() for clip in TRAIN[:30] + VALIDATION[:30]}
    assert len(waveforms) == 60


def test_clips_survive_pickling_and_metadata_is_json() -> None:
    for clip in VALIDATION[:10]:
        copy = pickle.loads(pickle.dumps(clip))
        assert copy == clip
        assert digest([copy]) == digest([clip])
        assert json.loads(json.dumps(clip.metadata)) == clip.metadata


@pytest.mark.parametrize(
    ("split", "count", "seed", "message"),
    [("test", 1, 0, "split"), ("train", -1, 0, "count"), ("train", 1, -1, "seed"), ("train", 1, 2**64, "seed")],
)
def test_bad_arguments_raise_at_the_call(split: str, count: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iter_synthetic(split, count, seed)  # type: ignore[arg-type]


# Sound


@pytest.mark.parametrize("name", ALL_EVENTS)
def test_each_event_renders_sound_that_differs_between_draws(name: str) -> None:
    renders = [render_alone(name, draw) for draw in range(4)]
    assert len({waveform.tobytes() for waveform in renders}) == 4
    for waveform in renders:
        assert waveform.dtype == np.float32
        assert np.isfinite(waveform).all()
        assert rms(waveform) > 1e-3
        assert np.abs(waveform).max() <= 0.95
        assert SAMPLE_RATE <= len(waveform) <= 20 * SAMPLE_RATE


def test_no_strike_is_longer_than_its_event_length() -> None:
    rng = np.random.default_rng(4)
    for event in ALL_EVENTS.values():
        if event.strike is not None:
            voice = draw_scene(Combination((event.name,), "single"), rng).tracks[0].voice
            assert max(len(event.strike(voice, rng)) for _ in range(5)) <= event.length * SAMPLE_RATE + 1


def test_clips_have_the_duration_of_the_scene_and_do_not_clip() -> None:
    for clip in TRAIN[:60] + VALIDATION[:60]:
        waveform = clip.render()
        assert len(waveform) == round(clip.metadata["duration"] * SAMPLE_RATE)
        assert np.isfinite(waveform).all()
        assert 1e-2 < np.abs(waveform).max() <= 0.9501


def test_a_linear_classifier_on_spectral_statistics_recognizes_the_events() -> None:
    def features(name: str, draw: int) -> np.ndarray:
        spectra = log_spectra(render_alone(name, draw))
        change = np.abs(np.diff(spectra, axis=0)).mean(0)
        return np.concatenate([spectra.mean(0), spectra.std(0), spectra.max(0), change, [1.0]])

    def table(draws: range) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(features(name, 1_000 * draw + i), i) for i, name in enumerate(ALL_EVENTS) for draw in draws]
        x, y = zip(*pairs, strict=True)
        return np.array(x), np.array(y)

    assert len(EVENTS) >= 24
    (x, y), (fresh_x, fresh_y) = table(range(7)), table(range(7, 10))
    regularized = x.T @ x + 10.0 * np.eye(x.shape[1])
    weights = np.linalg.solve(regularized, x.T @ np.eye(len(ALL_EVENTS))[y])
    predicted = (fresh_x @ weights).argmax(1)
    assert np.mean(predicted == fresh_y) >= 0.9


def test_the_loudness_matches_the_structure() -> None:
    for draw, name in enumerate(("siren", "rain", "dog", "organ", "knock", "bell")):
        levels = {kind: rms(render_alone(name, draw, kind)) for kind in ("faint", "single", "loud")}
        assert 2.0 * levels["faint"] < levels["single"] < levels["loud"]
    for draw, name in enumerate(("siren", "rain", "bee", "organ", "steam", "alarm")):
        for kind, ratio in (("rising", 1.0), ("falling", -1.0)):
            waveform = render_alone(name, draw, kind)
            third = len(waveform) // 3
            first, last = rms(waveform[:third]), rms(waveform[-third:])
            assert ratio * 20 * np.log10(last / first) > 8.0


def test_counted_strikes_are_audible_at_their_times() -> None:
    heard = 0
    for clip in TRAIN:
        (track, *others) = clip.metadata["events"]
        # A strike that rings into the next one or swells slowly has no sharp onset.
        if others or track["count"] is None or track["event"] in ("bell", "guitar", "owl", "cat", "thunder", "sonar"):
            continue
        assert track["count"] == len(track["strikes"])
        waveform = clip.render()
        for strike in track["strikes"]:
            start = int(strike * SAMPLE_RATE)
            assert rms(waveform[start : start + 1_600]) > 2.0 * rms(waveform[max(0, start - 400) : start + 1])
        heard += 1
    assert heard >= 20


def test_gaps_in_a_sequence_contain_only_noise() -> None:
    sequences = [clip for clip in VALIDATION if clip.metadata["structure"] == "sequence"][:20]
    for clip in sequences:
        waveform = clip.render()
        for before, after in itertools.pairwise(clip.metadata["events"]):
            end, start = before["onset"] + before["duration"], after["onset"]
            assert end < start
            gap = waveform[int(end * SAMPLE_RATE) + 2 : int(start * SAMPLE_RATE)]
            assert rms(gap) < 2.0 * 10 ** (clip.metadata["noise_db"] / 20)


def test_durations_are_mostly_short_and_reach_twenty_seconds() -> None:
    durations = np.array([clip.metadata["duration"] for clip in TRAIN])
    assert durations.min() >= 1.0
    assert durations.max() <= 20.0
    assert np.mean(durations > 17.0) > 0.002
    assert 4.0 < durations.mean() < 5.5
    assert np.median(durations) < durations.mean()
    for clip in CLIPS:
        assert all(track.end <= clip.scene.duration for track in clip.scene.tracks)


# Splits


def test_training_has_every_single_event_but_no_validation_combination() -> None:
    def pairs(clips: list[SyntheticClip]) -> set[tuple[str, ...]]:
        return {
            pair
            for clip in clips
            for pair in itertools.combinations(sorted(event["event"] for event in clip.metadata["events"]), 2)
        }

    def solos(clips: list[SyntheticClip]) -> set[tuple[str, str]]:
        return {
            (clip.metadata["events"][0]["event"], clip.metadata["structure"])
            for clip in clips
            if len(clip.metadata["events"]) == 1
        }

    whole = list(iter_synthetic("validation", len(validation_order(12)), 12))
    assert not pairs(TRAIN) & pairs(whole)
    assert not solos(TRAIN) & solos(whole)
    assert {event for event, structure in solos(TRAIN) if structure == "single"} == set(EVENTS)
    assert {name for pair in pairs(whole) for name in pair} == set(EVENTS)


def test_validation_clips_have_unique_sets_of_events() -> None:
    events = [frozenset(event["event"] for event in clip.metadata["events"]) for clip in VALIDATION]
    assert len(set(events)) == 300
    assert np.mean([len(some) > 1 for some in events]) > 0.8
    whole = [(tuple(sorted(c.events)), c.structure) for c in validation_order(12)]
    assert len(set(whole)) == len(whole) >= 500


def test_every_clip_of_the_new_set_has_a_new_event_and_none_of_its_validation_combinations_is_trained_on() -> None:
    def sets(clips: list[SyntheticClip]) -> list[frozenset[str]]:
        return [frozenset(event["event"] for event in clip.metadata["events"]) for clip in clips]

    trained = sets(TRAIN) + sets(NEW_TRAIN)
    assert all(names & NEW_EVENTS.keys() for names in sets(NEW_TRAIN) + sets(NEW_VALIDATION))
    assert set().union(*sets(NEW_TRAIN)) == ALL_EVENTS.keys()
    assert set().union(*sets(NEW_VALIDATION)) >= NEW_EVENTS.keys()
    assert len(set(sets(NEW_VALIDATION))) == len(NEW_VALIDATION)
    assert all(len(names) == 1 or not any(names <= seen for seen in trained) for names in sets(NEW_VALIDATION))


def test_keys_are_unique_and_name_the_split() -> None:
    assert TRAIN[123].key == "synth-train-000123"
    assert NEW_TRAIN[123].key == "synth-new-train-000123"
    assert len({clip.key for clip in TRAIN + CLIPS}) == len(TRAIN) + len(CLIPS) - 400


# Captions


def test_each_clip_has_three_to_five_captions_that_name_exactly_its_events() -> None:
    for clip in CLIPS:
        assert 3 <= len(set(clip.captions)) == len(clip.captions) <= 5
        present = {event["event"] for event in clip.metadata["events"]}
        for caption in clip.captions:
            assert {name for name, pattern in MENTIONS.items() if pattern.search(caption)} == present, caption


def test_order_words_agree_with_the_order_in_time() -> None:
    for clip in CLIPS:
        tracks = clip.metadata["events"]
        if clip.metadata["structure"] not in ("sequence", "overlap_then_sequence"):
            continue
        for caption in clip.captions:
            told = [MENTIONS[event["event"]].search(caption).start() for event in tracks]  # type: ignore[union-attr]
            if re.search(r".\bafter\b", caption):
                told.reverse()
            if clip.metadata["structure"] == "sequence":
                assert told == sorted(told), caption
            else:
                assert max(told[:2]) < told[2], caption


def test_captions_mention_simultaneity_exactly_if_events_overlap() -> None:
    together = re.compile(r"\b(while|as|with|over|at the same time)\b")
    for clip in CLIPS:
        for caption in map(without_noise_remark, clip.captions):
            assert bool(together.search(caption)) == ("overlap" in clip.metadata["structure"]), caption
        if "overlap" in clip.metadata["structure"]:
            front, back = clip.metadata["events"][:2]
            assert back["onset"] <= front["onset"]
            assert front["onset"] + front["duration"] <= back["onset"] + back["duration"] + 1e-9


def test_captions_mention_counts_and_loudness_exactly_if_they_hold() -> None:
    words = {n: re.compile(rf"\b({TIMES[n]}|{NUMBERS[n]})\b") for n in TIMES}
    quiet = re.compile(r"\b(faint|quiet|distant|faintly|quietly|distance|fading|fades)\b")
    loud = re.compile(r"\b(loud|loudly|louder)\b")
    for clip in CLIPS:
        counts = {event["count"] for event in clip.metadata["events"]} - {None}
        levels = {event["loudness"] for event in clip.metadata["events"]}
        for caption in clip.captions:
            assert {n for n, pattern in words.items() if pattern.search(caption)} == counts, caption
            assert bool(quiet.search(caption)) == bool(levels & {"faint", "falling"}), caption
            assert bool(loud.search(caption)) == bool(levels & {"loud", "rising"}), caption


def test_captions_mention_noise_only_if_it_is_audible() -> None:
    for clip in CLIPS:
        noted = sum(caption != without_noise_remark(caption) for caption in clip.captions)
        assert noted == (1 if clip.metadata["noise_db"] >= -42.0 else 0)


def test_captions_are_grammatical_and_their_vocabulary_is_small() -> None:
    plural_subjects = [w.subject for event in ALL_EVENTS.values() for w in event.wordings if w.plural]
    wrong_number = re.compile(rf"\b({'|'.join(plural_subjects)}) (is|grows|fades|\w+s)\b")
    vocabulary = set()
    for clip in TRAIN + CLIPS:
        for caption in clip.captions:
            assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption), caption
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            assert not re.search(r"\b(\w+) \1\b", caption), caption
            assert not wrong_number.search(caption), caption
            vocabulary.update(caption.replace(",", "").split())
    assert len(vocabulary) < 400


def test_phrasings_vary_within_an_event() -> None:
    for name in EVENTS:
        captions = {
            caption
            for clip in TRAIN
            if clip.metadata["structure"] == "single" and clip.metadata["events"][0]["event"] == name
            for caption in map(without_noise_remark, clip.captions)
        }
        assert len(captions) >= 5
