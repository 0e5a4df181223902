"""Every accepted form of audio and text arguments, errors for all others, and `SLAP.forward` for training."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slap_fast.data.loading.batch import Batch
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.models.arguments import split_clips, waveform
from slap_fast.models.slap import SLAP
from slap_fast.models.texts import split_texts
from slap_fast.ops.contrastive import contrastive_loss
from slap_fast.ops.packed import PackedLayout
from tests.models.builders import TINY, audio_layouts, random_clips

RATE = 48_000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog barks at a bell", "rain falls on the roof while thunder rolls"], 300)
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=len(tokenizer)))
    model = SLAP(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def stereo():
    """`[S, 2]` int16 at 48 kHz."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE // 2, 2))
    return (noise * 32_767).astype(np.int16)


def test_one_text_is_one_row_and_texts_come_in_any_ordered_iterable(model):
    dog, rain = "a dog barks", "rain falls"
    one = model.encode_text(dog)
    assert one.shape == (1, 32)
    for pair in ([dog, rain], (dog, rain), np.array([dog, rain]), iter([dog, rain]), {dog: 1, rain: 2}.keys()):
        assert torch.equal(model.encode_text(pair), model.encode_text([dog, rain]))
    assert torch.equal(model.encode_text(np.str_(dog)), one)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"a dog", "texts is a bytes; pass a string or a list of strings"),
        (None, "texts is a NoneType"),
        (7, "texts is a int"),
        ({"a dog", "rain"}, "texts is a set"),
        ({"text": "a dog"}, "texts is a dict"),
        (["a dog", None], r"texts\[1\] is a NoneType"),
        (["a dog", float("nan")], r"texts\[1\] is a float"),
        ([["a dog"]], r"texts\[0\] is a list"),
        (["a dog", "b\ud800"], r"texts\[1\] is 'b\\ud800', which is not valid Unicode"),
    ],
)
def test_anything_but_texts_is_an_error_of_one_line(model, texts, message):
    with pytest.raises(ValueError, match=message) as raised:
        model.encode_text(texts)
    assert "\n" not in str(raised.value)


def test_truncated_texts_are_counted_in_a_warning(model, caplog):
    most = model.config.text.max_length
    word = model.tokenizer("a")["input_ids"]
    fits = " ".join(["a"] * (most - len(word) + 1))
    assert len(model.tokenizer(fits)["input_ids"]) == most
    model.encode_text([fits])
    assert not caplog.records
    cut = model.encode_text(["bell", f"{fits} a bell"])[1:]
    torch.testing.assert_close(cut, model.encode_text(f"{fits} a roof"))
    assert "1 of 2 texts are longer than the model's 24 tokens and were cut, the first being 'a a" in caplog.text


def test_all_forms_of_a_clip_have_the_same_embedding(model, stereo, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, stereo, RATE, subtype="PCM_16")
    content = path.read_bytes()
    expected = model.encode_audio([path])
    assert expected.shape == (1, 32)
    floats = stereo.astype(np.float32) / 32768
    mono = floats.mean(1)
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(floats.T.copy()), sample_rate=RATE)
    )
    forms = [
        str(path),
        content,
        bytearray(content),
        io.BytesIO(content),
        (floats, RATE),  # soundfile.read
        (torch.from_numpy(floats.T.copy()), RATE),  # torchaudio.load
        (RATE, stereo),  # scipy.io.wavfile.read
        [stereo, RATE],
        (stereo.astype(">i2"), np.int64(RATE)),
        (floats[::-1][::-1], float(RATE)),
        (mono[None], torch.tensor(RATE)),
        (mono.tolist(), RATE),
        {"path": None, "array": floats.astype(np.float64), "sampling_rate": RATE},
        {"raw": torch.from_numpy(mono), "sampling_rate": RATE},
        {"path": "clip.wav", "bytes": content},
        {"path": str(path), "bytes": None},
        decoder,
    ]
    for form in forms:
        single = model.encode_audio(form)
        torch.testing.assert_close(single, expected, rtol=0, atol=1e-6, msg=lambda text, form=form: f"{form}: {text}")
        if not isinstance(form, io.BytesIO):
            assert torch.equal(model.encode_audio([form]), single)
    bare = [mono, mono[None], mono[:, None], torch.from_numpy(mono), [float(sample) for sample in mono]]
    for form in bare:
        torch.testing.assert_close(model.encode_audio([form], sampling_rate=RATE), expected, rtol=0, atol=1e-6)
    assert torch.equal(
        model.encode_audio(mono[None], sampling_rate=RATE), model.encode_audio([mono], sampling_rate=RATE)
    )


def test_several_clips_come_in_any_ordered_iterable(model, stereo, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, stereo, RATE, subtype="PCM_16")
    mixed = [path, (stereo, RATE), {"array": stereo, "sampling_rate": RATE}]
    expected = model.encode_audio(mixed)
    assert expected.shape == (3, 32)
    assert torch.equal(model.encode_audio(clip for clip in mixed), expected)
    paths = np.array([str(path), str(path)])
    assert torch.equal(model.encode_audio(paths), expected[[0, 0]])
    assert torch.equal(model.encode_audio(tmp_path.glob("*.wav")), expected[:1])
    # An iterator that uses its buffer again.
    for buffer in (np.empty(RATE, np.float32), torch.empty(RATE)):
        frozen = [np.full(RATE, level, np.float32) for level in (0.1, 0.2, 0.3)]

        def reused(buffer=buffer, frozen=frozen):
            for samples in frozen:
                buffer[:] = torch.from_numpy(samples) if isinstance(buffer, torch.Tensor) else samples
                yield buffer

        assert torch.equal(
            model.encode_audio(reused(), sampling_rate=RATE), model.encode_audio(frozen, sampling_rate=RATE)
        )
    # Two clips, not a clip with its rate.
    assert model.encode_audio((stereo[:, 0], stereo[:, 1]), sampling_rate=RATE).shape == (2, 32)


def test_samples_at_another_rate_are_resampled_and_an_unknown_rate_is_warned_about(model):
    at_48 = [clip.numpy() for clip in random_clips([0.9, 1.2])]
    at_16 = [soxr.resample(clip, RATE, 16_000, quality="HQ") for clip in at_48]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        expected = model.encode_audio(at_16)
    assert [str(warning.message) for warning in caught] == [
        "audio samples without a sampling rate are assumed to be at 16000 Hz; pass sampling_rate= in Hz, and they are "
        "resampled if needed"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.encode_audio(at_16, sampling_rate=16_000), expected)
        assert torch.equal(model.encode_audio(at_48, sampling_rate=RATE), expected)
        assert torch.equal(model.encode_audio([(clip, RATE) for clip in at_48]), expected)
        dense = model.encode_audio(at_48, sampling_rate=RATE, dense=True)
        assert [len(columns) for columns in dense] == [2, 3]
        _, similarity = model.similarity_over_time((at_48[1], RATE), "a bell")
        assert torch.equal(similarity, dense[1] @ model.encode_text("a bell")[0])
        assert torch.equal(model.similarity_over_time(at_48[1:], "a bell", sampling_rate=RATE)[1], similarity)
        captions = model.caption(at_16, sampling_rate=16_000, max_length=4)
        assert model.caption((at_48[0], RATE), max_length=4) == captions[:1]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(2, 400), r"audio has shape \(2, 400\), which may be channels or clips"),
        (np.zeros((3, 2, 400)), r"audio has shape \(3, 2, 400\)"),
        ([(np.zeros((20, 400)), RATE)], r"audio\[0\] has shape \(20, 400\)"),
        ((np.zeros((2, 1, 400)), RATE), r"audio has shape \(2, 1, 400\)"),
        ((np.zeros((4, 5)), RATE), r"audio has shape \(4, 5\)"),
        (np.zeros(0), r"audio has shape \(0,\); a clip has at least one sample"),
        (torch.tensor(0.5), r"audio has shape \(\)"),
        ((np.zeros(1), RATE), "audio has 1 samples at 48000 Hz, too few"),
        ([0.1, 0.2], r"audio\[0\] is a float"),
        (["dog.wav", 16_000], r"audio\[1\] is a int|missing_file: audio\[0\]: dog.wav"),
        (None, "audio is a NoneType"),
        ({"a.wav", "b.wav"}, "audio is a set"),
        ([None], r"audio\[0\] is a NoneType"),
        ([["dog.wav"]], r"audio\[0\] is a list"),
        ([[[0.1], [0.1, 0.2]]], r"audio\[0\] is a list, but no array of samples"),
        (io.StringIO("RIFF"), "audio is a file that is open as text; open it in mode 'rb'"),
        ({"bytes": np.zeros(400)}, r"audio\['bytes'\] is a ndarray; pass samples as 'array'"),
        ({"array": "dog.wav", "sampling_rate": RATE}, r"audio\['array'\] is a str; pass samples, or use"),
        ("", "audio is an empty path"),
        ({"waveform": np.zeros(400), "sample_rate": RATE}, "audio is a dict of 'waveform', 'sample_rate'; pass one of"),
        ({"array": np.zeros(400)}, "audio is a dict with array but without sampling_rate"),
        ((np.zeros(400), 16), "the rate of audio is 16 Hz, which is no rate of audio"),
        ((np.zeros(400), float("nan")), "the rate of audio is nan Hz"),
        ({"array": np.zeros(400), "sampling_rate": "48k"}, r"audio\['sampling_rate'\] is a str; pass a number of Hz"),
        (np.full(400, 3000.0), "audio has a root mean square of 3000, where full scale is 1"),
        (np.zeros(400, np.int32), "audio is int32; pass float samples in"),
        (np.zeros(400, np.uint8), "audio is uint8"),
        (np.zeros(400, bool), "audio is bool"),
        (np.zeros(400, complex), "audio is complex128"),
        (np.full(400, 1e300), "audio holds NaN or infinite samples"),
        (b"RIFF", "audio: not audio that libsndfile reads"),
        ([Path("/nowhere/dog.wav")], r"missing_file: audio\[0\]: /nowhere/dog.wav"),
    ],
)
def test_anything_but_clips_is_an_error_of_one_line(model, audio, message):
    with pytest.raises(ValueError, match=message) as raised:
        model.encode_audio(audio)
    assert "\n" not in str(raised.value)


def test_contradicting_sampling_rates_are_an_error(model):
    with pytest.raises(ValueError, match=r"audio\[0\] has its own rate of 48000 Hz, but sampling_rate is 16000"):
        model.caption([(np.zeros(400), RATE)], sampling_rate=16_000)
    with pytest.raises(ValueError, match="sampling_rate is 16 Hz"):
        model.encode_audio([np.zeros(400)], sampling_rate=16)


def test_an_empty_file_is_named(model, tmp_path):
    (tmp_path / "nothing.wav").touch()
    with pytest.raises(ValueError, match=rf"empty_file: audio\[0\]: {tmp_path}/nothing.wav: 0 bytes"):
        model.encode_audio([tmp_path / "nothing.wav"])


def test_similarity_over_time_takes_one_clip_and_one_text(model):
    clip = random_clips([0.5])[0]
    with pytest.raises(ValueError, match="audio holds several clips; pass one"):
        model.similarity_over_time([clip, clip], "a bell", sampling_rate=16_000)
    with pytest.raises(ValueError, match="audio holds no clip; pass one"):
        model.similarity_over_time([], "a bell")
    with pytest.raises(ValueError, match="text is a list; pass one string"):
        model.similarity_over_time(clip, ["a bell"], sampling_rate=16_000)


def test_sizes_below_one_are_an_error(model):
    with pytest.raises(ValueError, match="batch_size is -1; a batch holds at least 1 text"):
        model.encode_text(["a bell"], batch_size=-1)
    with pytest.raises(ValueError, match="max_length is 0; a caption has at least 1 token"):
        model.caption(random_clips([0.5]), sampling_rate=16_000, max_length=0)


def test_embeddings_can_train_a_probe(model):
    clips = random_clips([0.3, 0.5])
    audio, text = model.encode_audio(clips, sampling_rate=16_000), model.encode_text(["a bell", "a dog"])
    dense = model.encode_audio(clips, sampling_rate=16_000, dense=True)
    probe = nn.Linear(32, 2)
    for features in (audio, text, *dense):
        assert not features.is_inference()
        assert not features.requires_grad
        probe(features).sum().backward()
    audio.requires_grad_().square().sum().backward()
    assert audio.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_do_not_depend_on_the_default_dtype(model, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    clip, nothing = random_clips([0.7])[0], torch.Size([0, 32])

    def everything():
        loaded = SLAP.from_pretrained(tmp_path)
        times, similarity = loaded.similarity_over_time((clip, 8000), "a bell")
        return [loaded.encode_audio((clip, 8000)), loaded.encode_text("a dog barks"), times, similarity]

    expected = everything()
    torch.set_default_dtype(dtype)
    try:
        results = everything()
        empty = [model.encode_audio([]), model.encode_text([])]
    finally:
        torch.set_default_dtype(torch.float32)
    for result, value in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, value)
    assert [(value.dtype, value.shape) for value in empty] == [(torch.float32, nothing)] * 2


def test_forward_returns_embeddings_with_gradients(model, stereo):
    clips = random_clips([0.3, 0.5])
    texts = ["a bell", "a dog"]
    audio, text, logit_scale = model(clips, texts, sampling_rate=16_000)
    torch.testing.assert_close(audio, model.encode_audio(clips, sampling_rate=16_000), rtol=0, atol=1e-5)
    torch.testing.assert_close(text, model.encode_text(texts), rtol=0, atol=1e-5)
    assert torch.equal(logit_scale, model.logit_scale())
    assert model((stereo, RATE)).text is None
    assert model(None, "a bell").audio is None
    wave = clips[0].clone().requires_grad_()
    model([wave], sampling_rate=16_000).audio[0, 0].backward()
    assert wave.grad is not None
    assert wave.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r"audio\[0\] is at 8000 Hz and requires a gradient"):
        model([wave], sampling_rate=8000)
    model.zero_grad()


def test_forward_takes_a_packed_batch_with_its_masks(model):
    clips, texts = random_clips([0.3, 0.5]), ["a bell", "a dog"]
    samples, frames, tokens = audio_layouts(clips)
    ids = model.tokenizer(texts)["input_ids"]
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = Batch(
        waveform=torch.cat(clips),
        samples=samples,
        frames=frames,
        tokens=tokens,
        time_masked=torch.zeros(frames.total, dtype=torch.bool),
        mel_masked=torch.zeros(2, model.config.mel.n_mels, dtype=torch.bool),
        masked_tokens=nothing,
        masked=PackedLayout.from_lengths([0, 0]),
        input_ids=torch.tensor([*ids[0], *ids[1]]),
        text=PackedLayout.from_lengths([len(sequence) for sequence in ids]),
        clip_ids=torch.arange(2),
    )
    for value, expected in zip(model(batch), model(clips, texts, sampling_rate=16_000), strict=True):
        assert torch.equal(value, expected)
    masked = dataclasses.replace(batch, mel_masked=~batch.mel_masked)
    assert not torch.allclose(model(masked).audio, model(batch).audio)
    with pytest.raises(ValueError, match="a Batch has its own captions and sample rate; pass it alone"):
        model(batch, texts)


def test_ddp_trains_through_forward(model):
    clips, texts = random_clips([0.3, 0.5]), ["a bell", "a dog barks"]
    contrastive_loss(*model(clips, texts, sampling_rate=16_000)).loss.backward()
    expected = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert (
        not {name for name, _ in model.named_parameters()}
        - expected.keys()
        - {"audio_encoder.mask_token"}
        - {name for name, _ in model.named_parameters() if name.startswith("caption_decoder.")}
    )
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for _ in range(2):  # DDP reports errors of the first step in the second
            model.zero_grad()
            contrastive_loss(*wrapped(clips, texts, sampling_rate=16_000)).loss.backward()
    finally:
        dist.destroy_process_group()
    for name, value in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(value.grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    model.zero_grad()


@pytest.mark.parametrize("page", ["README.md", "docs/model.md"])
def test_the_documented_use_of_a_model_runs(model, stereo, tmp_path, monkeypatch, page):
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    section = text.partition("## Use a model")[2].partition("\n## ")[0] or text
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("demo/run/model")
    for name in ("dog.wav", "rain.mp3"):
        soundfile.write(name, stereo, RATE)
    names = {"samples": stereo[:, 0], "torch": torch}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for example in re.findall(r"```python\n(.*?)```", section, re.S):
            exec(example, names)
    finally:
        dist.destroy_process_group()
    assert names["audio"].shape == names["text"].shape == (2, 32)
    if page == "docs/model.md":
        assert names["model"].module.audio_encoder.patch_embedding.weight.grad is not None


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from([16_000, 48_000.0, np.int64(8000), np.array(44_100), torch.tensor(16_000), 1j, Ellipsis, int]),
    st.builds(io.BytesIO, st.binary(max_size=4)),
    st.builds(io.StringIO),
)
_SHAPES = st.sampled_from([(), (0,), (1,), (400,), (1, 400), (400, 1), (2, 400), (400, 2), (0, 4), (20, 30), (1, 1, 9)])
_ARRAYS = st.builds(
    np.zeros,
    _SHAPES,
    st.sampled_from(["f4", "f8", "f2", ">f4", "i2", ">i2", "i4", "u1", "?", "c8", "O", "U3", "M8[s]"]),
)
_TENSORS = st.builds(
    lambda shape, dtype, grad: torch.zeros(shape, dtype=dtype, requires_grad=grad and dtype.is_floating_point),
    _SHAPES,
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int16, torch.int64, torch.bool]),
    st.booleans(),
)
_ARGUMENTS = st.recursive(
    _SCALARS | _ARRAYS | _TENSORS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, _SCALARS),
        st.dictionaries(
            st.sampled_from(["array", "raw", "bytes", "path", "sampling_rate", "other"]), inner, max_size=3
        ),
    ),
    max_leaves=5,
)


@pytest.mark.filterwarnings("ignore:audio samples without a sampling rate")
@settings(max_examples=400, deadline=None)
@given(argument=_ARGUMENTS, rate=st.none() | _SCALARS)
def test_any_argument_is_converted_or_is_an_error_of_one_line(argument, rate):
    try:
        for clip in split_clips(argument)[1]:
            samples = waveform(clip, 16_000, rate, torch.device("cpu"))
            assert samples.dtype == torch.float32
            assert samples.dim() == 1
            assert len(samples) > 0
    except ValueError as raised:
        assert re.fullmatch(r"[^\n]*(audio|sampling_rate)[^\n]*", str(raised))  # noqa: PT017 - either will do
    try:
        assert all(isinstance(text, str) for text in split_texts(argument))
    except ValueError as raised:
        assert re.fullmatch(r"texts[^\n]*", str(raised))  # noqa: PT017 - either will do
