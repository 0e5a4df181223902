"""`SLAP.encode_audio` of ready waveforms: short clips that are packed, against one clip at a time.

An embedding must not depend on the batch. PyTorch's products change with their number of rows, so each clip ran by
itself, and a short one leaves threads idle. Where native code multiplies, up to `CPU_BATCH_SECONDS` of clips run
together, and each keeps the bits that it has alone.

- PyTorch's products, clip by clip: as without native code, and as before the op `linear`.
- slap-fast, clip by clip: native products without packing.
- slap-fast: `encode_audio` as it is.
- slap-fast, int8: the same with `precision="int8"`. It has a case of its own, because its error is that of 8 bits.

The weights are random, and so is the sound: neither changes the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.case import AUDIO_SECONDS, Case, Outputs, Peer, Run, Settings
from benchmarks.harness.inputs import normal
from benchmarks.library_workload import QUICKSTART
from slap_fast.config.model import ModelConfig, TextEncoderConfig
from slap_fast.models.quantization import Precision, apply_precision
from slap_fast.models.slap import SLAP
from slap_fast.ops import dispatch
from slap_fast.ops.int8_product import int8_kernel

TITLE = "Embeddings of ready waveforms"

TOLERANCE = 1e-4
INT8_TOLERANCE = 0.045  # of unit-length embeddings: a cosine of 0.999


@dataclass(frozen=True)
class Workload:
    """Clips of one length, the same at every call."""

    config: ModelConfig
    clips: int
    seconds: float
    device: str

    def model(self, precision: Precision = "fp32") -> SLAP:
        torch.manual_seed(0)
        model = SLAP(self.config, objectives=["contrastive"], load_pretrained_text=False).eval()
        apply_precision(model, precision)
        return model.to(self.device)

    def waves(self) -> list[Tensor]:
        samples = int(self.seconds * self.config.mel.sample_rate)
        return [0.1 * normal(clip, samples, device=self.device) for clip in range(self.clips)]


def cases(settings: Settings) -> list[Case]:
    paper = ModelConfig(
        text=TextEncoderConfig(pretrained=None, vocab_size=1024, width=768, layers=1, heads=12, pooling_heads=12)
    )
    found = []
    for name, config, seconds_of_audio in (("quickstart", QUICKSTART, 600), ("the paper's size", paper, 60)):
        if settings.quick and config is paper:
            continue
        for seconds in (1.0, 30.0) if settings.quick else (1.0, 5.0, 10.0, 30.0):
            clips = 3 if settings.quick else int(seconds_of_audio / seconds)
            workload = Workload(config, clips, seconds, settings.device)
            found += [_case(f"{name}, clips of {seconds:g} s", workload)]
            if settings.device == "cpu":
                found += [_int8_case(f"{name}, clips of {seconds:g} s, int8", workload)]
    return found


def _case(name: str, workload: Workload) -> Case:
    on_gpu = "clips are packed on a GPU" if workload.device != "cpu" else None
    peers = (
        Peer("PyTorch's products, clip by clip", partial(_run, workload, {"linear": "torch"}), on_gpu),
        Peer("slap-fast, clip by clip", partial(_run, workload, {}, batch_seconds=0.0), on_gpu),
        Peer("slap-fast", partial(_run, workload, {})),
    )
    return Case(
        name=name,
        peers=peers,
        baseline=peers[-1].name if on_gpu else peers[0].name,
        reference=partial(_reference, workload),
        tolerance=TOLERANCE,
        work={AUDIO_SECONDS: workload.clips * workload.seconds},
        facts={"clips": workload.clips},
        replayable=False,
    )


def _int8_case(name: str, workload: Workload) -> Case:
    peers = (
        Peer("slap-fast", partial(_run, workload, {})),
        Peer("slap-fast, int8", partial(_run, workload, {}, precision="int8")),
    )
    return Case(
        name=name,
        peers=peers,
        baseline=peers[0].name,
        reference=partial(_reference, workload),
        tolerance=INT8_TOLERANCE,
        work={AUDIO_SECONDS: workload.clips * workload.seconds},
        facts={"clips": workload.clips, "int8 kernel": int8_kernel() or "none"},
        replayable=False,
    )


def _reference(workload: Workload) -> Outputs:
    return {"embeddings": workload.model().encode_audio(workload.waves()[:2], sampling_rate=16_000)}


def _run(
    workload: Workload,
    backends: Mapping[str, str],
    *,
    batch_seconds: float = 600.0,
    precision: Precision = "fp32",
) -> Run:
    model, waves = workload.model(precision), workload.waves()

    def encode(clips: list[Tensor]) -> Tensor:
        with dispatch.preferring(**backends):
            return model.encode_audio(clips, sampling_rate=16_000, batch_seconds=batch_seconds)

    def outputs() -> Outputs:
        return {"embeddings": encode(waves)[:2]}

    return Run(step=lambda: encode(waves), outputs=outputs)
