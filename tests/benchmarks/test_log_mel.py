"""Log-mel benchmark: all peers compute the same result."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import log_mel, log_mel_libraries, log_mel_peers
from benchmarks.harness.case import Settings, relative_errors
from benchmarks.harness.cli import main
from benchmarks.log_mel_clips import Clips, mixed_seconds
from slap_fast.ops import MelConfig

QUICK = Settings(quick=True, rounds=3)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(mpty filters|zero values)")  # from presets with narrow filters
        assert main(["log_mel", "--quick", "--no-memory", "--threads", "1", "--out", str(folder)]) == 0
    return json.loads((folder / "log_mel-cpu-quick.json").read_text())


def test_every_peer_is_correct_or_unavailable_with_a_reason(result: dict[str, Any]) -> None:
    for case in result["cases"]:
        for peer in case["peers"]:
            assert peer["status"] == "ok" or (peer["status"] == "not available" and peer["reason"]), (case, peer)
        assert case["peers"][-1]["status"] == "ok"


def test_frames_are_always_checked_and_gradients_if_they_are_timed(result: dict[str, Any]) -> None:
    for case in result["cases"]:
        outputs = {name for peer in case["peers"] for name in peer.get("errors", ())}
        if case["name"].startswith("copy"):
            assert outputs == {"bytes"}
        else:
            assert outputs == {"frames", *["gradient"] * case["name"].endswith("backward")}


def test_the_speedup_of_a_second_thread_is_measured(result: dict[str, Any]) -> None:
    cases = [case for case in result["cases"] if case["name"].startswith("one and two threads")]
    assert len(cases) == 6
    for case in cases:
        assert case["baseline"] == "slap-fast, 1 thread"
        assert [peer["name"] for peer in case["peers"]] == ["slap-fast, 1 thread", "slap-fast, 2 threads"]


def test_a_peer_with_its_own_thread_count_restores_that_of_the_run() -> None:
    before, seen = torch.get_num_threads(), []
    clips = Clips.of_seconds((0.1,), MelConfig(), "cpu")

    def setup() -> log_mel_peers.Run:
        run = log_mel_peers.slap_fast(clips, backward=False)
        return replace(run, step=lambda: seen.append(torch.get_num_threads()))

    run = log_mel_peers.on_threads(setup, before + 1)
    run.step()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_chunks_cover_each_frame_once_with_exactly_their_samples() -> None:
    config = MelConfig()
    clips = Clips((400, 16_123, 559), config, "cpu")
    chunks = clips.chunks(37)
    assert [frame for _, frames in chunks for frame in range(frames.start, frames.stop)] == list(
        range(sum(clips.frames))
    )
    for samples, frames in chunks:
        assert config.num_frames(samples.stop - samples.start) == frames.stop - frames.start
    with pytest.raises(ValueError, match="399 samples"):
        Clips((399,), config, "cpu").chunks(37)
    with pytest.raises(ValueError, match="beyond its ends"):
        Clips((16_000,), MelConfig.preset("torchaudio"), "cpu").chunks(37)


def test_packing_reverses_padding() -> None:
    clips = Clips((900, 4_000, 401), MelConfig(), "cpu")
    assert torch.equal(clips.packed(clips.padded_waveform(), clips.samples), clips.waveform())
    assert torch.equal(clips.packed(clips.padded_gradient(), clips.frames), clips.gradient())
    equal = Clips((800, 800), MelConfig(), "cpu")
    assert equal.padded_waveform().data_ptr() == equal.waveform().data_ptr()


def test_a_peer_with_another_convention_fails_its_check() -> None:
    clips = Clips.of_seconds((0.3, 0.5), MelConfig(), "cpu")
    other = MelConfig(preemphasis=0.96)
    run = log_mel_peers.in_chunks(clips, log_mel_peers.kaldi_frames(other, "cpu"), backward=False)
    errors = relative_errors(run.outputs(), log_mel_peers.reference(clips, backward=False))
    assert errors["frames"] > 10 * log_mel.TOLERANCE


def test_the_mix_spans_one_to_thirty_seconds() -> None:
    seconds = mixed_seconds(32)
    assert 1.0 < min(seconds) < 1.1
    assert 28.0 < max(seconds) < 30.0
    assert 0.8 * 320 < sum(seconds) < 320


def test_sizes_match_their_names() -> None:
    sizes = log_mel.workloads(Settings())
    assert sizes["equal clips"] == (10.0,) * 32
    assert sizes["one long clip"] == (3600.0,)
    assert len(log_mel.workloads(Settings(device="cuda"))["equal clips"]) == 1024


def test_cpu_libraries_are_unavailable_on_a_gpu() -> None:
    peers = {peer.name: peer for case in log_mel.cases(Settings(device="cuda", quick=True)) for peer in case.peers}
    for name in ("kaldi-native-fbank", "librosa", "ASTFeatureExtractor", "ClapFeatureExtractor"):
        assert peers[name].unavailable == log_mel_libraries.CPU_ONLY
    assert peers["slap-fast"].unavailable is None
    assert "slap-fast, 2 threads" not in peers


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_mel_libraries.importlib.util, "find_spec", lambda module: None)
    clips = Clips.of_seconds((0.1,), MelConfig(), "cpu")
    assert log_mel_libraries.kaldi_native_fbank(clips).unavailable == "kaldi-native-fbank not installed"
    assert log_mel_libraries.librosa_by_clip(clips, 1).unavailable == "librosa and threadpoolctl not installed"
