from __future__ import annotations

import math

import pytest
import torch

from slap_fast.integrations import MelSpectrogram
from tests.oracles import torchaudio as recorded


def _waveform(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) * 2 - 1


def _spelled(value):
    """A test id that is the same in every process, unlike the address of a function."""
    if not isinstance(value, dict):
        return str(value)
    return ",".join(f"{name}={getattr(x, '__name__', x)}" for name, x in value.items()) or "defaults"


def _hertz_to_mel(hertz, scale):
    if scale == "htk":
        return 2595.0 * math.log10(1.0 + hertz / 700.0)
    return hertz * 3 / 200 if hertz < 1000 else 15.0 + math.log(hertz / 1000.0) * 27.0 / math.log(6.4)


def _mel_to_hertz(mel, scale):
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return mel * 200 / 3 if mel < 15.0 else 1000.0 * math.exp((mel - 15.0) * math.log(6.4) / 27.0)


def _filters(n_bins, f_min, f_max, n_mels, sample_rate, norm, scale):
    """[n_bins, n_mels]"""
    bins = torch.linspace(0, sample_rate // 2, n_bins, dtype=torch.float64)[:, None]
    low, high = _hertz_to_mel(f_min, scale), _hertz_to_mel(f_max, scale)
    points = [_mel_to_hertz(low + (high - low) * i / (n_mels + 1), scale) for i in range(n_mels + 2)]
    edges = torch.tensor(points, dtype=torch.float64)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp_min(0.0)
    return triangles * 2.0 / (right - left) if norm == "slaney" else triangles


def _expected(
    waveform,
    *,
    sample_rate=16_000,
    n_fft=400,
    win_length=None,
    hop_length=None,
    f_min=0.0,
    f_max=None,
    pad=0,
    n_mels=128,
    window_fn=torch.hann_window,
    power=2.0,
    normalized=False,
    wkwargs=None,
    center=True,
    pad_mode="reflect",
    norm=None,
    mel_scale="htk",
):
    """[..., n_mels, frames] by torch.stft"""
    win_length = win_length or n_fft
    window = window_fn(win_length, dtype=torch.float64, **(wkwargs or {}))
    rows = torch.nn.functional.pad(waveform, (pad, pad)).reshape(-1, waveform.shape[-1] + 2 * pad)
    spectrum = torch.stft(
        rows,
        n_fft,
        hop_length or win_length // 2,
        win_length,
        window,
        center,
        pad_mode,
        normalized == "frame_length",
        return_complex=True,
    )
    if normalized in (True, "window"):
        spectrum = spectrum / window.square().sum().sqrt()
    filters = _filters(n_fft // 2 + 1, f_min, f_max or sample_rate // 2, n_mels, sample_rate, norm, mel_scale)
    mel = (spectrum.abs().pow(power).transpose(1, 2) @ filters).transpose(1, 2)
    return mel.reshape(*waveform.shape[:-1], *mel.shape[1:])


@pytest.mark.parametrize("arguments", recorded.MEL_SPECTROGRAMS, ids=_spelled)
def test_equals_the_definition(arguments):
    waveform = _waveform(2, 5003)
    actual = MelSpectrogram(**arguments)(waveform)
    torch.testing.assert_close(actual, _expected(waveform, **arguments), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("index", "arguments"), list(enumerate(recorded.MEL_SPECTROGRAMS)), ids=_spelled)
def test_equals_torchaudio(index, arguments):
    expected, state_dict = recorded.mel_spectrogram(index)
    ours = MelSpectrogram(**arguments)
    ours.load_state_dict(state_dict)
    # torchaudio computes filters in float32, where the small weights at their edges are imprecise.
    torch.testing.assert_close(ours(recorded.noise(2, 703)), expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_positional_arguments_are_in_the_order_of_torchaudio():
    values = (16_000, 512, 400, 160, 20.0, 7000.0, 5, 64, torch.hamming_window, 1.0, True, None, False)
    by_name = MelSpectrogram(
        sample_rate=16_000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        f_min=20.0,
        f_max=7000.0,
        pad=5,
        n_mels=64,
        window_fn=torch.hamming_window,
        power=1.0,
        normalized=True,
        wkwargs=None,
        center=False,
    )
    assert MelSpectrogram(*values).config == by_name.config


@pytest.mark.parametrize("shape", [(4000,), (1, 4000), (2, 3, 4000)])
def test_leading_dimensions_are_kept(shape):
    waveform = _waveform(*shape)
    mel = MelSpectrogram(n_mels=40)(waveform)
    assert mel.shape == (*shape[:-1], 40, 21)
    flat = torch.stack([MelSpectrogram(n_mels=40)(row) for row in waveform.reshape(-1, 4000)])
    torch.testing.assert_close(mel, flat.reshape(mel.shape))


def test_clips_too_short_for_torch_stft_have_frames():
    assert MelSpectrogram(n_mels=40)(torch.ones(3)).shape == (40, 1)
    assert MelSpectrogram(n_mels=40, center=False)(torch.ones(3)).shape == (40, 1)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_logarithm_in_the_same_pass(power):
    waveform = _waveform(4000)
    waveform[:1000] = 0.0
    mel = MelSpectrogram(n_mels=40, power=power)(waveform)
    in_one = {log: MelSpectrogram(n_mels=40, power=power, log=log)(waveform) for log in ("db", "log10", "natural")}
    clamped = mel.clamp_min(1e-10)
    torch.testing.assert_close(in_one["natural"], clamped.log())
    torch.testing.assert_close(in_one["log10"], clamped.log10())
    torch.testing.assert_close(in_one["db"], clamped.log10() * 20.0 / power)


@pytest.mark.parametrize(
    "arguments", [{}, {"power": 1.0, "pad": 3}, {"normalized": True, "center": False}], ids=_spelled
)
def test_gradients_equal_the_definition(arguments):
    arguments = {"n_fft": 64, "n_mels": 8, **arguments}
    ours, theirs = (_waveform(2, 333).requires_grad_() for _ in range(2))
    mel = MelSpectrogram(**arguments)(ours)
    weights = torch.rand(mel.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (mel * weights).sum().backward()
    (_expected(theirs, **arguments) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_torchaudio_checkpoint_of_a_larger_model_loads():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mel = MelSpectrogram()
            self.head = torch.nn.Linear(2, 2)

    model = Model()
    assert set(model.state_dict()) == {"head.weight", "head.bias"}
    tables = {"mel.spectrogram.window": torch.ones(400), "mel.mel_scale.fb": torch.ones(201, 128)}
    model.load_state_dict({**model.state_dict(), **tables})
    with pytest.raises(RuntimeError, match=r"mel\.other"):
        model.load_state_dict({**model.state_dict(), "mel.other": torch.ones(1)})


def test_compiles_to_one_graph_with_changing_lengths():
    mel = MelSpectrogram(n_fft=64, n_mels=8, log="db")
    compiled = torch.compile(mel, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (1000, 1300):
        waveform = _waveform(2, length, dtype=torch.float32)
        torch.testing.assert_close(compiled(waveform), mel(waveform))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_fft": 401}, "n_fft is 401"),
        ({"pad": -1}, "pad is -1"),
        ({"power": 3.0}, "power is 3.0; choose 1 .magnitude. or 2"),
        ({"pad_mode": "replicate"}, "pad_mode is 'replicate'; choose one of 'reflect', 'constant'"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"mel_scale": "kaldi"}, "mel_scale is 'kaldi'"),
        ({"normalized": "energy"}, "normalized is 'energy'"),
        ({"window_fn": torch.blackman_window}, "window_fn is .*choose torch.hann_window"),
        ({"wkwargs": {"alpha": 0.5}, "window_fn": torch.hamming_window}, "wkwargs has 'alpha'.*takes periodic"),
        ({"wkwargs": {"periodic": True}, "window_fn": torch.ones}, "wkwargs has 'periodic'; ones takes nothing"),
        ({"f_max": 9000.0}, "f_max are 0.0, 9000.0"),
        ({"win_length": 500}, "n_fft is 400; it must be at least win_length .500."),
    ],
    ids=_spelled,
)
def test_unsupported_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        MelSpectrogram(**arguments)


def test_a_scalar_is_rejected():
    with pytest.raises(ValueError, match="waveform has no dimension"):
        MelSpectrogram()(torch.tensor(1.0))


@pytest.mark.gpu
def test_output_is_on_the_device_of_the_input():
    waveform = _waveform(2, 5003, dtype=torch.float32)
    mel = MelSpectrogram().to("cuda")(waveform.cuda())
    assert mel.device.type == "cuda"
    torch.testing.assert_close(mel.cpu(), MelSpectrogram()(waveform), rtol=1e-4, atol=1e-4)
