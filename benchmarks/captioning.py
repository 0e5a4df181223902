"""Caption generation: greedy decoding and beam search with a key/value cache, against the loop without a cache.

Without a cache, each token of each clip runs the decoder on the whole caption so far and projects the audio features
again. With it, a step runs one token of each clip. It then reads the weights of the decoder and of the vocabulary once
for all clips, and the cached keys and values of each clip: on a GPU, and for few clips on a CPU, the time is bounded
below by these bytes over the memory bandwidth. For the paper's decoder in float32 they are 0.25 GB of weights and
8.2 MB per clip of 10 s; its 64 M multiplications and additions per token make 64 clips compute-bound on a CPU.

The weights are random, and no caption ends early, as those of a trained model do. "audio to text" includes the audio
encoder, whose time a cache does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings
from benchmarks.harness.inputs import normal
from slap_fast.config.model import AudioEncoderConfig, CaptionDecoderConfig, ModelConfig, TextEncoderConfig
from slap_fast.models.captioning import clip_features
from slap_fast.models.decoding import beam_search, greedy_search
from slap_fast.models.encoding import encode_features, inference_context
from slap_fast.models.slap import SLAP
from slap_fast.ops.packed import PackedLayout

TITLE = "Captions of clips of 10 s"

START, END = 0, 1
SECONDS = 10.0

Decode = Callable[[SLAP, Tensor, PackedLayout, int], list[list[int]]]


@dataclass(frozen=True)
class Workload:
    """Captions of `tokens` tokens for `clips` clips, the same at every call."""

    config: ModelConfig
    clips: int
    tokens: int
    device: str

    def model(self) -> SLAP:
        torch.manual_seed(0)
        model = SLAP(self.config, objectives=["caption"], load_pretrained_text=False).eval()
        # The end is never the most probable token.
        torch.nn.init.zeros_(model.caption_decoder.token_embedding.weight[END])
        return model.to(self.device)

    def waves(self) -> list[Tensor]:
        samples = int(SECONDS * self.config.mel.sample_rate)
        return [0.1 * normal(clip, samples, device=self.device) for clip in range(self.clips)]


def cases(settings: Settings) -> list[Case]:
    quickstart = ModelConfig(  # with 6 layers in the audio tower, as it was when results were recorded
        audio=AudioEncoderConfig(width=128, layers=6, heads=4, mlp_width=384, pooling_heads=4),
        text=TextEncoderConfig(pretrained=None, vocab_size=1024, width=128, layers=4, heads=4, pooling_heads=4),
        caption=CaptionDecoderConfig(width=128, layers=2, heads=4, mlp_width=512),
    )
    wide = replace(
        quickstart, text=replace(quickstart.text, vocab_size=50_368), caption=CaptionDecoderConfig()
    )  # the paper's decoder on features of the quickstart's width: those of the paper cost more in both ways
    small = Workload(quickstart, 4 if settings.quick else 64, 6 if settings.quick else 32, settings.device)
    found = [_case("quickstart", small, whole=False), _case("quickstart", small, whole=True)]
    if not settings.quick:
        found.append(_case("the paper's decoder", Workload(wide, 64, 16, settings.device), whole=False))
    return found


def _case(name: str, workload: Workload, *, whole: bool) -> Case:
    peers = {"without a cache": _without_cache, "slap-fast, greedy": _greedy, "slap-fast, 4 beams": _beams}
    return Case(
        name=f"{name}, {'audio to text' if whole else 'features to text'}",
        peers=tuple(Peer(peer, partial(_run, workload, decode, whole)) for peer, decode in peers.items()),
        baseline="without a cache",
        reference=lambda: _outputs(workload, _without_cache, torch.float64),
        tolerance=0.0,
        work={"captions": workload.clips},
        facts={"clips": workload.clips, "tokens of a caption": workload.tokens},
        replayable=False,
    )


def _run(workload: Workload, decode: Decode, whole: bool) -> Run:
    model, waves = workload.model(), workload.waves()
    with inference_context(model):
        given = clip_features(model, waves)

    def step() -> list[list[int]]:
        with inference_context(model):
            features, layout = clip_features(model, waves) if whole else given
            return decode(model, features, layout, workload.tokens)

    # The best of four captions need not be the greedy one; the best of one is.
    checked = partial(_beams, beams=1) if decode is _beams else decode
    return Run(step=step, outputs=lambda: _outputs(workload, checked, torch.float32))


def _outputs(workload: Workload, decode: Decode, dtype: torch.dtype) -> Outputs:
    """The caption of the first clip, decoded in `dtype` from the same features."""
    model = workload.model()
    with inference_context(model):
        features, layout = encode_features(model, workload.waves()[:1])
        model.caption_decoder.to(dtype)
        return {"tokens": torch.tensor(decode(model, features.to(dtype), layout, workload.tokens))}


def _without_cache(model: SLAP, features: Tensor, layout: PackedLayout, tokens: int) -> list[list[int]]:
    captions = []
    for clip in features.split(list(layout.lengths)):
        one = PackedLayout.from_lengths([len(clip)], device=clip.device)
        ids = [START]
        while len(ids) <= tokens:
            prefix = PackedLayout.from_lengths([len(ids)], device=clip.device)
            logits = model.caption_decoder(torch.tensor(ids, device=clip.device), prefix, clip, one)
            ids.append(int(logits[-1].argmax()))
        captions.append(ids[1:])
    return captions


def _greedy(model: SLAP, features: Tensor, layout: PackedLayout, tokens: int) -> list[list[int]]:
    return greedy_search(model.caption_decoder, features, layout, START, END, tokens)


def _beams(model: SLAP, features: Tensor, layout: PackedLayout, tokens: int, *, beams: int = 4) -> list[list[int]]:
    return beam_search(model.caption_decoder, features, layout, START, END, tokens, beams=beams, length_penalty=1.0)
