"""Peers of the log-mel benchmark from other libraries, each in the fastest documented way. Forward only.

Samples are passed in the form that a library takes without conversion: NumPy arrays, except for kaldi-native-fbank,
whose binding takes a sequence and reads it number by number; a memoryview is the fastest of those. The DALI pipeline
does not prefetch, so that the time of a step covers the work of that step.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.case import Outputs, Peer, Run
from benchmarks.log_mel_clips import Clips
from slap_fast.ops.log_mel.tables import window

CPU_ONLY = "runs on the CPU only"
_PACKAGES = {
    "kaldi_native_fbank": "kaldi-native-fbank",
    "nvidia.dali": "nvidia-dali",
}


def kaldi_native_fbank(clips: Clips) -> Peer:
    return Peer("kaldi-native-fbank", partial(_kaldi_native_fbank, clips), _reason(clips, "kaldi_native_fbank"))


def librosa_by_clip(clips: Clips, threads: int) -> Peer:
    """For conventions with a dynamic range: librosa uses the loudest bin of its whole input."""
    return Peer("librosa", partial(_librosa, clips, threads, batched=False), _numpy_reason(clips, "librosa"))


def librosa_batched(clips: Clips, threads: int) -> Peer:
    return Peer("librosa", partial(_librosa, clips, threads, batched=True), _numpy_reason(clips, "librosa"))


def dali(clips: Clips, threads: int) -> Peer:
    return Peer("DALI", partial(_dali, clips, threads), _reason(clips, "nvidia.dali", cpu_only=False))


def torchaudio(clips: Clips) -> Peer:
    return Peer("torchaudio", partial(_torchaudio, clips), _reason(clips, "torchaudio", cpu_only=False))


def whisper_extractor(clips: Clips) -> Peer:
    return Peer("WhisperFeatureExtractor", partial(_whisper_extractor, clips))


def ast_extractor(clips: Clips, threads: int) -> Peer:
    return Peer("ASTFeatureExtractor", partial(_ast_extractor, clips, threads), _numpy_reason(clips))


def clap_extractor(clips: Clips, threads: int) -> Peer:
    return Peer("ClapFeatureExtractor", partial(_clap_extractor, clips, threads), _numpy_reason(clips))


def _reason(clips: Clips, *modules: str, cpu_only: bool = True) -> str | None:
    if cpu_only and clips.device != "cpu":
        return CPU_ONLY
    missing = [_PACKAGES.get(module, module) for module in modules if not _installed(module)]
    return f"{' and '.join(missing)} not installed" if missing else None


def _numpy_reason(clips: Clips, *modules: str) -> str | None:
    return _reason(clips, *modules, "threadpoolctl")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _limit_numpy_threads(threads: int) -> None:
    """Without it, matrix products of NumPy use every core, independent of PyTorch's setting."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(limits=threads, user_api="blas")


def _arrays(clips: Clips) -> list[np.ndarray]:
    return [clip.cpu().numpy() for clip in clips.split()]


def _run(step: Callable[[], Any], frames: Callable[[Any], Sequence[Any]]) -> Run:
    """`frames` converts the result of `step` to `[frames, n_mels]` of each clip."""

    def outputs() -> Outputs:
        return {"frames": torch.cat([torch.as_tensor(np.array(clip)) for clip in frames(step())])}

    return Run(step, outputs)


def _kaldi_native_fbank(clips: Clips) -> Run:
    import kaldi_native_fbank as knf

    config = clips.config
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = {"hann_symmetric": "hanning", "povey": "povey"}[config.window]
    options.mel_opts.num_bins = config.n_mels
    waveforms = [memoryview(waveform) for waveform in _arrays(clips)]  # type: ignore[arg-type]

    def clip(waveform: memoryview) -> np.ndarray:
        fbank = knf.OnlineFbank(options)
        fbank.accept_waveform(config.sample_rate, waveform)
        fbank.input_finished()
        return np.stack([fbank.get_frame(index) for index in range(fbank.num_frames_ready)])

    return _run(lambda: [clip(waveform) for waveform in waveforms], lambda result: result)


def _librosa(clips: Clips, threads: int, *, batched: bool) -> Run:
    import librosa

    _limit_numpy_threads(threads)
    config = clips.config
    inputs = [clips.padded_waveform().numpy()] if batched else _arrays(clips)

    def features(waveform: np.ndarray) -> np.ndarray:
        mel = librosa.feature.melspectrogram(
            y=waveform,
            sr=config.sample_rate,
            n_fft=config.n_fft,
            hop_length=config.hop_length,
            pad_mode="reflect" if config.padding == "reflect" else "constant",
            n_mels=config.n_mels,
            fmin=config.f_min,
            fmax=config.f_max,
            htk=config.mel_scale == "htk",
            norm=None if config.mel_norm == "none" else config.mel_norm,
        )
        return librosa.power_to_db(mel, amin=config.log_floor, top_db=config.dynamic_range)

    def frames(result: list[np.ndarray]) -> list[np.ndarray]:
        return [clip.swapaxes(-1, -2) for clip in (result[0] if batched else result)]

    return _run(lambda: [features(waveform) for waveform in inputs], frames)


def _dali(clips: Clips, threads: int) -> Run:
    from nvidia.dali import Pipeline, fn, types

    config, on_gpu = clips.config, clips.device == "cuda"
    pipeline = Pipeline(
        batch_size=len(clips.samples),
        num_threads=threads,
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    with pipeline:
        waveforms = fn.external_source(
            name="waveforms",
            device="gpu" if on_gpu else "cpu",
            dtype=types.DALIDataType.FLOAT,
            ndim=1,
            no_copy=True,
        )
        spectrum = fn.spectrogram(
            waveforms,
            nfft=config.n_fft,
            window_length=config.win_length,
            window_step=config.hop_length,
            window_fn=window(config).tolist(),
            reflect_padding=config.padding == "reflect",
            layout="tf",  # the faster of the two here
        )
        mel = fn.mel_filter_bank(
            spectrum,
            sample_rate=float(config.sample_rate),
            nfilter=config.n_mels,
            freq_low=config.f_min,
            freq_high=config.f_max or config.sample_rate / 2,
            mel_formula=config.mel_scale,
            normalize=config.mel_norm == "slaney",
        )
        floor_in_db = 10.0 * float(np.log10(config.log_floor))
        pipeline.set_outputs(fn.to_decibels(mel, multiplier=10.0, reference=1.0, cutoff_db=floor_in_db))
    pipeline.build()
    inputs: list[Any] = clips.split() if on_gpu else _arrays(clips)

    def step() -> Any:
        pipeline.feed_input("waveforms", inputs)
        (result,) = pipeline.run()
        return result

    def frames(result: Any) -> list[np.ndarray]:
        on_cpu = result.as_cpu() if on_gpu else result
        return [np.array(on_cpu.at(index)) for index in range(len(inputs))]

    return _run(step, frames)


def _torchaudio(clips: Clips) -> Run:
    import torchaudio

    config = clips.config
    mel = torchaudio.transforms.MelSpectrogram(
        config.sample_rate,
        n_fft=config.n_fft,
        win_length=config.win_length,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        f_min=config.f_min,
        f_max=config.f_max,
    ).to(clips.device)
    decibels = torchaudio.transforms.AmplitudeToDB()
    waveform = clips.padded_waveform()

    def step() -> Tensor:
        with torch.no_grad():
            return decibels(mel(waveform))

    return _run(step, lambda result: result.transpose(1, 2).cpu())


def _whisper_extractor(clips: Clips) -> Run:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=clips.config.n_mels)
    waveforms, rate = _arrays(clips), clips.config.sample_rate

    def step() -> Any:
        # Clips have one length: "longest" adds no padding, while the default pads each to 30 s.
        return extractor(waveforms, sampling_rate=rate, padding="longest", return_tensors="np", device=clips.device)

    return _run(step, lambda result: result["input_features"].swapaxes(1, 2))


def _ast_extractor(clips: Clips, threads: int) -> Run:
    from transformers import ASTFeatureExtractor

    _limit_numpy_threads(threads)
    extractor = ASTFeatureExtractor(num_mel_bins=clips.config.n_mels, max_length=max(clips.frames))
    waveforms, rate = _arrays(clips), clips.config.sample_rate
    return _run(
        lambda: extractor(waveforms, sampling_rate=rate, return_tensors="np"), lambda result: result["input_values"]
    )


def _clap_extractor(clips: Clips, threads: int) -> Run:
    from transformers import ClapFeatureExtractor

    _limit_numpy_threads(threads)
    extractor = ClapFeatureExtractor(truncation="rand_trunc", padding="pad")
    waveforms, rate, longest = _arrays(clips), clips.config.sample_rate, max(clips.samples)

    def step() -> Any:
        return extractor(waveforms, sampling_rate=rate, max_length=longest, return_tensors="np")

    return _run(step, lambda result: result["input_features"][:, 0])
