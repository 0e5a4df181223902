"""Loss ops without their large matrices, forward and backward: slap-fast's backends against common implementations.

- contrastive, softmax (`infonce`) and pairwise sigmoid: B embeddings of 768 channels, B from 4,096 to 32,768.
  Peers: open_clip's `ClipLoss` and `SigLipLoss`, which store the logits; the plain formula, eager and compiled; the
  formula by chunks of 1,024 rows under `torch.utils.checkpoint`; Inf-CL on a GPU.
- captions: 8,192 tokens of 512 channels against a vocabulary of 50,368. Peers: `F.cross_entropy(F.linear)`, PyTorch's
  `F.linear_cross_entropy` whole and chunked; Liger-Kernel and cut-cross-entropy on a GPU.
- prototypes: masked tokens of 256 channels against 32,768 prototypes, three rounds of Sinkhorn-Knopp. Peer: DINOv2's
  implementation, which stores the scores of both sides, at 8,000 tokens, and at 32,000 if they fit.

The column "working memory" is a peer's peak without parameters and gradients. Before anything is timed, the loss and
the gradients of every parameter are compared with float64: see `losses_workload`. Useful GFLOP are those of the
products that a loss needs if it does not store its matrix, whatever a peer computes:

    contrastive  8 B² D      similarities in the forward and in the backward, and the gradients of both sides
    captions     6 T V D     logits, and the gradients of both sides in the same sweep
    prototypes  14 T K D     the teacher's scores in three rounds and in the loss, the student's, and two gradients

`ClipLoss` computes 12 B² D, chunks under a checkpoint 16 B² D for the softmax, and a peer that stores the scores of the
prototypes 8 T K D. The last column divides by the matrix product that the same run timed, in the same dtype. The
expected time is operations over peak:

    contrastive  B = 4,096: 0.10    8,192: 0.41    16,384: 1.65    32,768: 6.60 TFLOP
    captions     1.27 TFLOP
    prototypes   8,000 tokens: 0.94    32,000: 3.76 TFLOP

Lower bounds for two AVX-512 cores, together 486 GFLOP/s in float32 and 860 in bf16:

    contrastive  0.21, 0.85, 3.4 and 13.6 s; in bf16 0.12, 0.48, 1.9 and 7.7 s
    captions     2.6 s; in bf16 1.5 s
    prototypes   1.9 and 7.7 s; in bf16 1.1 and 4.4 s

Exponentials add to that: two per pair for the softmax in each sweep, one for the sigmoid, about ten operations each
beside the 1,536 to 6,144 of the pair's products.

A full run on a CPU takes hours and up to 18 GB; peers that would not fit are listed with the reason. Peers are
optional; `pip install --no-deps open_clip_torch` is enough for open_clip, of which only the file of losses is loaded.
`losses_at_scale` has batches that only slap-fast can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch

from benchmarks import losses_peers as peers
from benchmarks.harness.case import Case, Peer, Run, Settings, not_installed
from benchmarks.harness.machine import has_bf16_units
from benchmarks.losses_workload import CHECKED_ROWS, Captions, Contrastive, Prototypes
from benchmarks.matrix_product import DTYPE_NAMES, USEFUL, product_case, product_name
from benchmarks.our_peers import PREFIX, loss_variants, variant_peers
from slap_fast.ops import dispatch

TITLE = "Losses without their big matrices, forward and backward"

# 20 times (float32) and 5 times (bfloat16) the largest error seen of a correct peer.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LARGEST_PLAIN = 16_384  # on a CPU a larger step takes minutes
# Matrices of all pairs that a peer holds at its peak, as measured.
STORED = {"infonce": 4, "sigmoid": 5, "compiled": 2, "captions": 3, "prototypes": 3}

Workload = TypeVar("Workload", Contrastive, Captions, Prototypes)


def cases(settings: Settings) -> list[Case]:
    dtypes = measured_dtypes(settings)
    found = [product_case(dtype, settings) for dtype in dtypes]
    # On a GPU also the paper's batch, but fewer sizes: its time is limited to minutes.
    batches = (2_048, 8_192, 32_768) if settings.device == "cuda" else (4_096, 8_192, 16_384, 32_768)
    for batch in (256, 512) if settings.quick else batches:
        found += [
            contrastive_case(workload, _contrastive_peers(workload, settings))
            for workload in contrastive_workloads(batch, settings)
        ]
    found += [_captions_case(_captions_workload(dtype, settings)) for dtype in dtypes]
    for tokens in (64, 128) if settings.quick else (8_000, 32_000):
        found += [_prototypes_case(_prototypes_workload(tokens, dtype, settings)) for dtype in dtypes]
    return found


def measured_dtypes(settings: Settings) -> list[torch.dtype]:
    """On a GPU, where time is limited, the training dtype comes first."""
    half = [torch.bfloat16] if has_bf16_units(settings.device) else []
    return [*half, torch.float32] if settings.device == "cuda" else [torch.float32, *half]


def contrastive_workloads(batch: int, settings: Settings) -> list[Contrastive]:
    distinct, width = (256, 64) if settings.quick else (2_048, 768)
    return [
        Contrastive(batch, distinct, width, dtype, settings.device, kind=kind)
        for kind in ("infonce", "sigmoid")
        for dtype in measured_dtypes(settings)
    ]


def _captions_workload(dtype: torch.dtype, settings: Settings) -> Captions:
    tokens, distinct, width, vocabulary = (96, 32, 16, 200) if settings.quick else (8_192, 256, 512, 50_368)
    return Captions(tokens, distinct, width, dtype, settings.device, vocabulary=vocabulary)


def _prototypes_workload(tokens: int, dtype: torch.dtype, settings: Settings) -> Prototypes:
    distinct, width, prototypes = (32, 16, 200) if settings.quick else (250, 256, 32_768)
    return Prototypes(tokens, distinct, width, dtype, settings.device, prototypes=prototypes)


def contrastive_case(workload: Contrastive, found: list[Peer]) -> Case:
    return _case(f"contrastive, {workload.kind}, {workload.rows:,}", workload, found, facts={"batch": workload.rows})


def inf_cl_peers(workload: Contrastive) -> list[Peer]:
    if workload.device != "cuda" or workload.kind != "infonce":
        return []
    return [
        Peer("Inf-CL", lambda: peers.contrastive(workload, peers.inf_cl(workload)), not_installed("inf_cl", "inf_cl"))
    ]


def _contrastive_peers(workload: Contrastive, settings: Settings) -> list[Peer]:
    no_open_clip = not_installed("open_clip", "open_clip_torch")
    matrix = workload.rows**2 * workload.dtype.itemsize
    too_large = peers.no_room(STORED[workload.kind] * matrix, workload.device)
    too_large_compiled = peers.no_room(STORED["compiled"] * matrix, workload.device)

    def peer(name: str, loss: Callable[[Contrastive], peers.Loss], unavailable: str | None = None) -> Peer:
        return Peer(name, lambda: peers.contrastive(workload, loss(workload)), unavailable)

    return [
        peer(f"open_clip {peers.OPEN_CLIP[workload.kind]}", peers.open_clip, no_open_clip or too_large),
        peer("plain formula", peers.formula, too_large or _same_as_open_clip(workload, no_open_clip)),
        peer("plain formula, torch.compile", peers.compiled, too_large_compiled or _no_compiler(settings)),
        peer("chunks under checkpoint", peers.checkpointed),
        *inf_cl_peers(workload),
        *backend_peers("contrastive_loss", workload, peers.contrastive_backend),
        *_by_ids(workload),
    ]


def _by_ids(workload: Contrastive) -> list[Peer]:
    """Positives by clip ids, as in training; on a GPU these take other kernels."""
    if workload.device != "cuda":
        return []
    reason = dict(dispatch.report()["contrastive_loss"])["triton"]
    return [Peer(f"{PREFIX}triton, by ids", partial(peers.contrastive_by_ids, workload, "triton"), reason)]


def _captions_case(workload: Captions) -> Case:
    stored = STORED["captions"] * workload.rows * workload.vocabulary * workload.dtype.itemsize
    too_large = peers.no_room(stored, workload.device)
    too_old = None if hasattr(torch.nn, "LinearCrossEntropyOptions") else f"PyTorch {torch.__version__} has none"

    def peer(name: str, loss: Callable[[], peers.Loss], unavailable: str | None = None) -> Peer:
        return Peer(name, lambda: peers.captions(workload, loss()), unavailable)

    found = [
        peer("F.cross_entropy(F.linear)", lambda: peers.cross_entropy_of_linear, too_large),
        peer(
            "F.linear_cross_entropy",
            partial(peers.torch_linear_cross_entropy, chunked=False),
            too_old or too_large,
        ),
        peer("F.linear_cross_entropy, chunked", partial(peers.torch_linear_cross_entropy, chunked=True), too_old),
    ]
    if workload.device == "cuda":
        found += [
            peer("Liger-Kernel", peers.liger, not_installed("liger_kernel", "liger-kernel")),
            peer(
                "cut-cross-entropy",
                peers.cut_cross_entropy,
                not_installed("cut_cross_entropy", "cut-cross-entropy")
                or ("its gradients are filtered for 16-bit floats" if workload.dtype == torch.float32 else None),
            ),
        ]
    found += backend_peers("linear_cross_entropy", workload, peers.captions_backend)
    return _case(
        f"captions, {workload.rows:,}",
        workload,
        found,
        facts={"tokens": workload.rows, "vocabulary": workload.vocabulary},
    )


def _prototypes_case(workload: Prototypes) -> Case:
    stored = STORED["prototypes"] * workload.rows * workload.prototypes * 4
    plain = Peer(
        "DINOv2's way",
        lambda: peers.prototypes(workload, peers.dinov2(workload)),
        peers.no_room(stored, workload.device),
    )
    found = [plain, *backend_peers("prototype_cross_entropy", workload, peers.prototypes_backend)]
    return _case(
        f"prototypes, {workload.rows:,}",
        workload,
        found,
        facts={
            "tokens": workload.rows,
            "prototypes": workload.prototypes,
            "Sinkhorn-Knopp rounds": workload.iterations,
        },
    )


def _case(
    name: str,
    workload: Contrastive | Captions | Prototypes,
    found: list[Peer],
    facts: Mapping[str, float],
) -> Case:
    return Case(
        name=f"{name}, {DTYPE_NAMES[workload.dtype]}",
        peers=tuple(found),
        baseline=next((peer.name for peer in found if peer.unavailable is None), found[0].name),
        reference=workload.reference,
        tolerance=TOLERANCES[workload.dtype],
        work={USEFUL: workload.flop / 1e9},
        peak=product_name(workload.dtype),
        facts={
            **facts,
            "width": workload.width,
            "useful GFLOP": workload.flop / 1e9,
            "distinct rows": workload.distinct,
            "rows checked": min(workload.rows, CHECKED_ROWS),
        },
    )


def backend_peers(op: str, workload: Workload, setup: Callable[[Workload, str], Run]) -> list[Peer]:
    """One peer per backend of `op`, with the reason if it cannot run on this machine."""
    reasons: dict[str, str | None] = dict(dispatch.report()[op])
    backends: list[Peer] = [
        Peer(PREFIX + name, partial(setup, workload, name), reason) for name, reason in reasons.items()
    ]
    names: tuple[str, ...] = loss_variants(op, workload.dtype)
    variants: list[Peer] = variant_peers(
        op, workload.device, partial(setup, workload, "triton"), reasons["triton"], names
    )
    return [*backends, *variants]


def _same_as_open_clip(workload: Contrastive, no_open_clip: str | None) -> str | None:
    if workload.rows <= LARGEST_PLAIN or no_open_clip:
        return None
    return "left out: same time and memory as open_clip's row"


def _no_compiler(settings: Settings) -> str | None:
    return "a quick run is over before it has compiled" if settings.quick else None
