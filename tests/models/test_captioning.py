"""Generation of captions: greedy decoding and beam search with a key/value cache."""

from __future__ import annotations

import itertools
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from slap_fast.config.model import CaptionDecoderConfig
from slap_fast.errors import ModelError
from slap_fast.models import captioning
from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.models.decoding import beam_search, greedy_search
from slap_fast.models.encoding import encode_features
from slap_fast.models.slap import SLAP
from slap_fast.ops.packed import PackedLayout
from tests.models.builders import TINY, random_clips

START, END = 0, 1
WIDTH = 24
LENGTHS = [5, 1, 9, 3, 14, 2]


class WordsTokenizer:
    """Decodes token 7 to "w7"."""

    cls_token_id, sep_token_id = START, END

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(f"w{token}" for token in ids if not (skip_special_tokens and token in (START, END)))


def decoder_of(
    vocabulary: int, *, seed: int = 0, std: float = 0.4, dtype: torch.dtype = torch.float32
) -> CaptionDecoder:
    """Random weights, large enough for captions that differ and end at different lengths."""
    torch.manual_seed(seed)
    config = CaptionDecoderConfig(width=32, layers=2, heads=2, mlp_width=48)
    decoder = CaptionDecoder(config, vocab_size=vocabulary, feature_width=WIDTH)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return decoder.to(dtype).requires_grad_(False)


def features_of(lengths: list[int] = LENGTHS, *, seed: int = 1, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), WIDTH, generator=generator).to(dtype), PackedLayout.from_lengths(lengths)


def whole_prefix_greedy(decoder, features, layout, max_length: int) -> list[list[int]]:
    """The oracle: each token from the whole prefix of one caption, without a cache."""
    captions = []
    for clip in features.split(list(layout.lengths)):
        ids = [START]
        while len(ids) <= max_length:
            one = PackedLayout.from_lengths([len(clip)])
            token = int(decoder(torch.tensor(ids), PackedLayout.from_lengths([len(ids)]), clip, one)[-1].argmax())
            if token == END:
                break
            ids.append(token)
        captions.append(ids[1:])
    return captions


def test_a_step_with_the_cache_gives_the_logits_of_the_whole_prefix() -> None:
    decoder = decoder_of(50, dtype=torch.float64)
    features, layout = features_of(dtype=torch.float64)
    drawn = torch.randint(0, 50, (70, 16), generator=torch.Generator().manual_seed(2)).tolist()
    state = decoder.start(features, layout)
    rows: list[tuple[int, list[int]]] = [(clip, []) for clip in range(len(LENGTHS))]
    for step, tokens in enumerate(drawn):
        if step in (3, 40):  # clips leave, and captions branch as in beam search
            keep = [1, 1, 2, 4, 4] if step == 3 else [2, 4]
            rows = [(rows[row][0], list(rows[row][1])) for row in keep]
            state.select(keep, [sum(clip == row[0] for row in rows) for clip in range(len(LENGTHS))])
        for (_, ids), token in zip(rows, tokens, strict=False):
            ids.append(token)
        logits = decoder.step(torch.tensor([ids[-1] for _, ids in rows]), state)
    assert [clip for clip, _ in rows] == [2, 4]
    for row, (clip, ids) in zip(logits, rows, strict=True):
        one = features.split(LENGTHS)[clip]
        prefix, clips = PackedLayout.from_lengths([len(ids)]), PackedLayout.from_lengths([len(one)])
        torch.testing.assert_close(row, decoder(torch.tensor(ids), prefix, one, clips)[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "ties"])
def test_greedy_captions_are_those_of_the_whole_prefix_token_by_token(tied: bool) -> None:
    lengths = set()
    for seed in range(3):
        decoder = decoder_of(12, seed=seed)
        if tied:  # each token has a twin of the same logit; the first is taken
            decoder.token_embedding.weight[6:] = decoder.token_embedding.weight[:6]
        features, layout = features_of(seed=seed)
        expected = whole_prefix_greedy(decoder, features, layout, 40)
        assert greedy_search(decoder, features, layout, START, END, 40) == expected
        lengths |= {len(caption) for caption in expected}
    assert len(lengths) > 3, "captions must end at different steps for this test"


def sequence_score(decoder, clip, ids: list[int], alpha: float) -> float:
    layout = PackedLayout.from_lengths([len(ids)])
    logits = decoder(torch.tensor([START, *ids[:-1]]), layout, clip, PackedLayout.from_lengths([len(clip)]))
    return float(logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()) / len(ids) ** alpha


@pytest.mark.parametrize("alpha", [2.0, -1.0])
def test_wide_enough_beams_find_the_best_caption_of_all(alpha: float) -> None:
    words, longest = [0, 2, 3], 4
    for seed in range(2):
        decoder = decoder_of(4, seed=seed)
        features, layout = features_of([3, 1], seed=seed)
        best = []
        for clip in features.split(list(layout.lengths)):
            ended = [[*body, END] for n in range(longest) for body in itertools.product(words, repeat=n)]
            cut = [list(body) for body in itertools.product(words, repeat=longest)]
            scored = {tuple(ids): sequence_score(decoder, clip, ids, alpha) for ids in ended + cut}
            best.append([token for token in max(scored, key=lambda ids: scored[ids]) if token != END])
        found = beam_search(decoder, features, layout, START, END, longest, beams=4**longest, length_penalty=alpha)
        assert found == best


class Wrapped(PreTrainedModel, GenerationMixin):
    """The decoder as a model of transformers, for its `generate`."""

    config_class = PretrainedConfig

    def __init__(self, decoder: CaptionDecoder, clip: torch.Tensor) -> None:
        config = PretrainedConfig()
        config.vocab_size, config.num_hidden_layers = decoder.token_embedding.num_embeddings, 1
        super().__init__(config)
        self.decoder, self.clip = decoder, clip
        self.post_init()

    def _init_weights(self, module):
        """Keeps the weights of the decoder."""

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}

    def forward(self, input_ids, **_):
        rows, length = input_ids.shape
        clips = PackedLayout.from_lengths([len(self.clip)] * rows)
        layout = PackedLayout.from_lengths([length] * rows)
        logits = self.decoder(input_ids.flatten(), layout, self.clip.repeat(rows, 1), clips)
        return CausalLMOutput(logits=logits.unflatten(0, (rows, length)))


@pytest.mark.parametrize(("beams", "alpha"), [(1, 1.0), (2, 1.0), (4, 0.0), (3, -1.0)])
def test_captions_are_those_of_transformers_generate(beams: int, alpha: float) -> None:
    ended = 0
    for seed in range(3):
        decoder = decoder_of(12, seed=seed)
        features, layout = features_of(seed=seed)
        if beams == 1:
            found = greedy_search(decoder, features, layout, START, END, 20)
        else:
            found = beam_search(decoder, features, layout, START, END, 20, beams=beams, length_penalty=alpha)
        for clip, caption in zip(features.split(LENGTHS), found, strict=True):
            (ids,) = Wrapped(decoder, clip).generate(  # type: ignore[misc]
                torch.tensor([[START]]),
                num_beams=beams,
                length_penalty=alpha,
                max_length=21,
                eos_token_id=END,
                pad_token_id=END,
                do_sample=False,
                use_cache=False,
            )
            expected = ids.tolist()[1:]
            expected = expected[: expected.index(END)] if END in expected else expected
            assert caption == expected
            ended += len(caption) < 20
    assert ended > 3, "captions must end for this test"


@pytest.fixture(scope="module")
def model() -> SLAP:
    torch.manual_seed(3)
    model = SLAP(TINY).eval()
    for parameter in model.caption_decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.tokenizer = WordsTokenizer()  # type: ignore[assignment]
    return model


def test_captions_of_clips_do_not_depend_on_batches_of_clips(model: SLAP, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = random_clips([0.3, 1.0, 0.1, 2.0, 0.5])
    for beams in (1, 3):
        options: dict[str, Any] = {"sampling_rate": 16_000, "max_length": 12, "beam_size": beams}
        one_by_one = [model.caption([clip], **options)[0] for clip in clips]
        assert len(set(one_by_one)) > 2
        assert model.caption(clips, **options) == one_by_one
        assert model.caption(iter(clips), batch_size=2, **options) == one_by_one
        with monkeypatch.context() as patch:
            patch.setattr(captioning, "BATCH_SECONDS", 1.2)  # the clip of 2 s is a batch of its own
            assert model.caption(clips, **options) == one_by_one


def test_features_on_a_cpu_have_the_bits_of_each_clip_alone(model: SLAP) -> None:
    waves = random_clips([0.3, 1.0, 0.1])
    with torch.no_grad():
        features, layout = captioning.clip_features(model, waves)
        alone = [encode_features(model, pack)[0] for pack in ([wave] for wave in waves)]
    assert all(map(torch.equal, features.split(list(layout.lengths)), alone))


def test_bfloat16_models_caption(model: SLAP) -> None:
    clips = random_clips([0.3, 1.0])
    with torch.autocast("cpu", torch.bfloat16):
        assert len(model.caption(clips, sampling_rate=16_000, max_length=4, beam_size=2)) == 2
    half = SLAP(TINY).eval().bfloat16()
    half.tokenizer = model.tokenizer
    assert len(half.caption(clips, sampling_rate=16_000, max_length=4)) == 2


def test_cut_and_empty_captions_are_counted_in_the_log(model: SLAP, caplog: pytest.LogCaptureFixture, monkeypatch):
    clips = random_clips([0.3, 1.0, 0.2])
    with caplog.at_level(logging.WARNING):
        captions = model.caption(clips, sampling_rate=16_000, max_length=2)
        cut = [at for at, text in enumerate(captions) if len(text.split()) == 2]
        assert f"{len(cut)} of 3 captions reached max_length=2 tokens and were cut" in caplog.text
        monkeypatch.setattr(captioning, "greedy_search", lambda *_: [[5], [], [6]])
        assert model.caption(clips, sampling_rate=16_000) == ["w5", "", "w6"]
    assert "1 of 3 captions are empty: the model ended them at once" in caplog.text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0; pass 1 for greedy decoding"),
        ({"batch_size": 0}, "batch_size is 0; a batch holds at least 1 clip"),
        ({"length_penalty": math.nan}, "length_penalty is nan; pass a number from -10 to 10"),
    ],
)
def test_arguments_out_of_range_are_errors(model: SLAP, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.caption(random_clips([0.3]), sampling_rate=16_000, **option)


@pytest.mark.parametrize("beams", [1, 3])
def test_damaged_weights_are_an_error_and_not_a_caption(model: SLAP, beams: int, monkeypatch) -> None:
    step = model.caption_decoder.step
    monkeypatch.setattr(model.caption_decoder, "step", lambda *arguments: step(*arguments) * math.nan)
    with pytest.raises(ModelError, match="the caption decoder gives logits that are not finite"):
        model.caption(random_clips([0.3]), sampling_rate=16_000, beam_size=beams)


def test_a_model_without_a_caption_decoder_says_which_objective_it_lacks() -> None:
    with pytest.raises(ModelError, match=r"no caption decoder, .* objectives\.caption_weight=0"):
        SLAP(TINY, objectives=["contrastive"]).caption(random_clips([0.3]))


def test_the_examples_of_the_documentation_run(model: SLAP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wave in zip(("dog.wav", "rain.mp3"), random_clips([0.3, 0.5]), strict=True):
        soundfile.write(tmp_path / name, wave.numpy(), 16_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SLAP, "from_pretrained", lambda folder: model)
    page = (Path(__file__).parents[2] / "docs/captioning.md").read_text(encoding="utf-8")
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(example, {})
