"""Audio towers of different projects on the same clips: encoding, training of the tower, and training with losses.

All start from log-mel spectrograms in memory (100 frames a second, 64 mels), since frontends have a benchmark of their
own, and end at one embedding for each clip. Weights are random. Durations are the mix of `training_step`: half of the
clips have 10 s, a quarter 15 to 30 s, a quarter 1 to 30 s.

- slap-fast: the paper's tower, packed. Two of three layers attend to a window, and the gated MLP has 1.33 times the
  operations of a plain one for each token.
- NaFlexCLAP: the audio tower of open_clip's NaFlexCLAP, 16 x 16 patches and a ViT-B with rotary positions. It is timm's
  `NaFlexVit`, used as open_clip's `NaFlexAudioEncoder` does; the two projections that follow, two products for a clip,
  are left out. open_clip sorts a pool of clips by length, and cuts it into batches with a bound on their tokens, each
  padded to its longest clip: "length buckets". A larger pool leaves less padding; "one clip at a time" has none.
- SigLIP 2: the vision tower of transformers that takes any number of patches, as a ViT over spectrograms, with the same
  dimensions. AST and ViT of transformers are not peers: they have no mask for padding.
- CLAP: transformers' HTSAT. It hears 10 s of each clip: longer ones are cut, shorter ones repeated and padded. Its rate
  counts the seconds that it hears; its time per step, and thus its speedup, is for less audio.
- open_clip's HTSAT is in no release (3.3.0 has no audio towers); transformers' CLAP is the same architecture.

Each tower is compared with itself, in float32 with one clip at a time; slap-fast's with PyTorch's operations. bfloat16
is autocast over float32 weights. The error may then be twice that of one clip at a time in bfloat16, and the error
that a result lists is what exceeds this.

The contrastive loss takes ready embeddings of captions, so no text tower runs. The last peer of its case trains all
that slap-fast's recipe trains: text tower, caption decoder, two passes of the audio tower, and the teacher's. Its
weights are bfloat16 where the others have autocast.

GFLOP counts the matrix products that a peer computes, those of padding included. A backward pass counts twice its
forward.

timm and open_clip require torchvision, whose wheels on PyPI are for PyTorch with CUDA. With the CPU build of PyTorch,
take it from PyTorch's own index, and install both in a folder of their own, for PYTHONPATH:
`pip install --no-deps --target DIR timm torchvision`.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import towers_peers as towers
from benchmarks.harness.case import AUDIO_SECONDS, Case, Peer, Run, Settings
from benchmarks.harness.machine import available_bytes, has_bf16_units
from benchmarks.matrix_product import DTYPE_NAMES, product_case, product_name
from benchmarks.towers_steps import (
    OPERATIONS,
    Build,
    Grouping,
    by_length,
    encode,
    one_at_a_time,
    reference,
    together,
    train,
    train_all_objectives,
)
from benchmarks.towers_workload import Workload, packed_flops
from benchmarks.training_step import PAPER_MODEL, QUICK_MODEL, mixed_durations

TITLE = "Audio towers of different projects on the same clips"

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-3}
BUCKET_TOKENS = {"cpu": 1024, "cuda": 16_384}  # the latter is open_clip's default
OURS = "slap-fast"
BASELINE = "SigLIP 2, padded"


def cases(settings: Settings) -> list[Case]:
    on_gpu = settings.device == "cuda"
    clips = 4 if settings.quick else 16 if not on_gpu else 256 if available_bytes(settings.device) > 110e9 else 128
    scale = 0.1 if settings.quick else 1.0
    durations = tuple(scale * seconds for seconds in mixed_durations(clips))
    found = []
    for dtype in (torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])):
        workload = Workload(
            durations,
            QUICK_MODEL if settings.quick else PAPER_MODEL,
            dtype,
            settings.device,
            bucket_tokens=64 if settings.quick else BUCKET_TOKENS[settings.device],
        )
        found += [_case(name, workload, settings) for name in ("encode", "train", "train, contrastive")]
        found.append(product_case(dtype, settings, OPERATIONS))
    return found


def _case(name: str, workload: Workload, settings: Settings) -> Case:
    trains, contrastive = name != "encode", name == "train, contrastive"

    def run(build: Build, grouping: Grouping) -> Run:
        if trains:
            return train(workload, build, grouping, contrastive=contrastive)
        return encode(workload, build, grouping)

    def peers(name: str, build: Build) -> list[Peer]:
        ways = {"padded": together, "length buckets": by_length, "one clip at a time": one_at_a_time}
        return [Peer(f"{name}, {way}", partial(run, build, grouping)) for way, grouping in ways.items()]

    clap = partial(towers.clap, quick=settings.quick)
    found = [
        *peers("NaFlexCLAP", towers.naflex),
        *peers("SigLIP 2", towers.siglip),
        Peer("CLAP, 10 s of each clip", partial(run, clap, together)),
        Peer(OURS, partial(run, towers.slap_fast, together)),
    ]
    if contrastive:
        found.append(Peer(f"{OURS}, all three objectives", partial(train_all_objectives, workload)))
    flops = (3 if trains else 1) * packed_flops(workload)
    return Case(
        name=f"{name}, {DTYPE_NAMES[workload.dtype]}",
        peers=tuple(found),
        baseline=BASELINE,
        reference=partial(reference, trains=trains),
        tolerance=TOLERANCES[workload.dtype],
        work={OPERATIONS: flops / 1e9, AUDIO_SECONDS: workload.seconds},
        facts={
            "clips": len(workload.durations),
            "shortest (s)": min(workload.durations),
            "longest (s)": max(workload.durations),
            "padding share": _padding(workload, together),
            "padding share of the buckets": _padding(workload, by_length),
            "seconds that CLAP hears": sum(min(towers.CLAP_SECONDS, seconds) for seconds in workload.durations),
        },
        peak=product_name(workload.dtype),
        replayable=False,  # towers of others read sizes back from the device
    )


def _padding(workload: Workload, grouping: Grouping) -> float:
    groups = grouping(workload, range(len(workload.tokens)))
    padded = sum(len(group) * max(workload.tokens[clip] for clip in group) for group in groups)
    return 1 - sum(workload.tokens) / padded
