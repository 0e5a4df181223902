"""Operations of the GPU round: every op of the model, forward and backward, at the paper's and at small sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.inputs import normal
from benchmarks.our_peers import attention_variants, loss_variants
from slap_fast.kernels.variants import VARIANTS
from slap_fast.ops import (
    MelConfig,
    PackedLayout,
    add_rms_norm,
    apply_rotary_qkv,
    contrastive_loss,
    linear_cross_entropy,
    log_mel,
    prototype_cross_entropy,
    rms_norm,
    swiglu,
    varlen_attention,
)

WIDTH, HEADS, HEAD_DIM, HIDDEN = 768, 12, 64, 3072
CAPTION_WIDTH, VOCABULARY = 512, 50_368
BOTTLENECK, PROTOTYPES = 256, 32_768


@dataclass(frozen=True)
class Size:
    """Sizes of the inputs.

    Attributes:
        lengths: tokens of each clip.
        captions: tokens of each caption.
        samples: samples of each clip.
        batch: clips of the contrastive loss.
        tokens: tokens of the caption loss.
        masked: tokens of the prototype loss.
        narrow: divisor of the widths, the vocabulary and the number of prototypes.
    """

    lengths: tuple[int, ...]
    captions: tuple[int, ...]
    samples: tuple[int, ...]
    batch: int
    tokens: int
    masked: int
    narrow: int = 1


SIZES = {
    # A step of 256 clips of 10 s; the paper's batch.
    "paper": Size((250,) * 256, (24,) * 256, (160_000,) * 256, batch=2048, tokens=8192, masked=32_000),
    # The same kernels (same widths) over few rows.
    "few": Size((130, 1, 64), (9, 30, 17), (16_000, 400, 9_000), batch=200, tokens=200, masked=200),
    # For a memory checker and for a CPU.
    "tiny": Size((33, 1, 70), (4, 9, 5), (4_000, 400, 700), batch=40, tokens=36, masked=40, narrow=8),
}


@dataclass(frozen=True)
class Operation:
    """One call of an op.

    Attributes:
        name: unique.
        op: name in `dispatch`.
        dtype: of the inputs.
        leaves: makes the float32 tensors on the device that get gradients; `run` rounds them to `dtype`.
        call: runs the op on them with a backend.
        plain: name of the PyTorch backend, which also takes float64.
        asks: names in `variants.VARIANTS` that its launches use.
    """

    name: str
    op: str
    dtype: torch.dtype
    leaves: Callable[[], list[Tensor]]
    call: Callable[[Sequence[Tensor], str], Sequence[Tensor]]
    plain: str = "torch"
    asks: tuple[str, ...] = ()

    def backend(self, device: str) -> str:
        """The backend with slap-fast's kernels for the device."""
        return "auto" if device == "cpu" else "cuda" if self.op == "log_mel" else "triton"

    def variants(self, device: str) -> Iterator[dict[str, str]]:
        """All defaults, then on a GPU each variant alone."""
        yield {}
        for name in self.asks if device == "cuda" else ():
            yield from ({name: variant} for variant in VARIANTS[name][1:])

    def label(self, choice: dict[str, str]) -> str:
        return ", ".join([self.name, *(f"{name}={variant}" for name, variant in choice.items())])

    def run(self, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Outputs and gradients, computed in `dtype` from inputs rounded to the dtype of the operation."""
        leaves = [self._rounded(leaf, dtype or self.dtype) for leaf in self.leaves()]
        outputs = list(self.call(leaves, backend))
        if not outputs[0].requires_grad:
            return outputs
        # Rounded first, so that every dtype gets the same gradient.
        gradients = [
            normal(90 + place, *output.shape, device=str(output.device)).to(self.dtype).to(output.dtype)
            if output.dim()
            else torch.ones_like(output)
            for place, output in enumerate(outputs)
        ]
        found = torch.autograd.grad(outputs, leaves, gradients)
        return [*(output.detach() for output in outputs), *found]

    def _rounded(self, leaf: Tensor, dtype: torch.dtype) -> Tensor:
        if leaf.dtype == torch.int16:
            return leaf if dtype == torch.int16 else leaf.to(dtype) / 32768
        return leaf.to(self.dtype).to(dtype).requires_grad_()


def operations(size: Size, device: str) -> list[Operation]:
    """The calls of the model: bfloat16 as in training, float32 where training or a kernel uses it, float16 once."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        *_contrastive(size, device, (fp32, bf16)),
        *_captions(size, device, (bf16, fp32)),
        *_prototypes(size, device, (bf16, fp32)),
        *_attention(size, device, (bf16, fp32, fp16)),
        *_rotary(size, device, (bf16, fp32)),
        *_norms(size, device, (bf16, fp32)),
        *_swiglu(size, device, (bf16, fp32)),
        *_log_mel(size, device),
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _offsets(lengths: Sequence[int], device: str) -> Tensor:
    return PackedLayout.from_lengths(list(lengths), device=device).cu_seqlens


def _attention(size: Size, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Operation]:
    heads = max(2, HEADS // size.narrow)
    audio, captions, one = size.lengths, size.captions, (1,) * len(size.lengths)
    calls: list[tuple[str, Sequence[int], Sequence[int], tuple[int, int], Sequence[torch.dtype]]] = [
        ("local", audio, audio, (48, 48), dtypes),
        ("global", audio, audio, (-1, -1), dtypes[:2]),
        ("causal", captions, captions, (-1, 0), dtypes[:1]),
        ("caption to audio", captions, audio, (-1, -1), dtypes[:1]),
        ("pooling", one, audio, (-1, -1), dtypes[:1]),
    ]
    for kind, queries, keys, window, measured in calls:
        for dtype in measured:

            def leaves(queries: Sequence[int] = queries, keys: Sequence[int] = keys) -> list[Tensor]:
                totals = sum(queries), sum(keys), sum(keys)
                return [normal(seed, total, heads, HEAD_DIM, device=device) for seed, total in enumerate(totals)]

            def call(
                leaves: Sequence[Tensor],
                backend: str,
                queries: Sequence[int] = queries,
                keys: Sequence[int] = keys,
                window: tuple[int, int] = window,
            ) -> Sequence[Tensor]:
                q, k, v = leaves
                own = _offsets(queries, device)
                other = own if queries is keys else _offsets(keys, device)
                longest = max(queries), max(keys)
                return [
                    varlen_attention(
                        q, k, v, own, other, max_seqlen_q=longest[0], max_seqlen_k=longest[1], window=window,
                        backend=backend,
                    )
                ]  # fmt: skip

            yield Operation(
                f"attention, {kind}, {_name(dtype)}", "varlen_attention", dtype, leaves, call,
                plain="torch" if device == "cpu" else "torch_padded",
                asks=attention_variants(window, dtype, backward=True),
            )  # fmt: skip


def _rotary(size: Size, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Operation]:
    heads = max(2, HEADS // size.narrow)
    for kind, tokens_per_frame, theta in (("audio", 4, (10_000.0, 100.0)), ("text", None, (160_000.0,))):
        for dtype in dtypes:

            def call(
                leaves: Sequence[Tensor],
                backend: str,
                tokens_per_frame: int | None = tokens_per_frame,
                theta: tuple[float, ...] = theta,
            ) -> Sequence[Tensor]:
                bases = (theta[0], theta[1]) if len(theta) == 2 else theta[0]
                offsets = _offsets(size.lengths, device)
                return apply_rotary_qkv(
                    leaves[0], offsets, tokens_per_frame=tokens_per_frame, theta=bases, backend=backend
                )

            yield Operation(
                f"rotary, {kind}, {_name(dtype)}", "apply_rotary", dtype,
                lambda: [normal(0, sum(size.lengths), 3, heads, HEAD_DIM, device=device)], call,
            )  # fmt: skip


def _norms(size: Size, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Operation]:
    tokens, width = sum(size.lengths), WIDTH // size.narrow
    for dtype in dtypes:
        yield Operation(
            f"add_rms_norm, {_name(dtype)}", "rms_norm", dtype,
            lambda: [*(normal(seed, tokens, width, device=device) for seed in (0, 1)), normal(2, width, device=device)],
            lambda leaves, backend: add_rms_norm(*leaves, eps=1e-6, backend=backend),
        )  # fmt: skip
    yield Operation(
        f"rms_norm, {_name(dtypes[0])}", "rms_norm", dtypes[0],
        lambda: [normal(0, tokens, width, device=device), normal(2, width, device=device)],
        lambda leaves, backend: [rms_norm(*leaves, eps=1e-6, backend=backend)],
    )  # fmt: skip


def _swiglu(size: Size, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Operation]:
    for dtype in dtypes:
        yield Operation(
            f"swiglu, {_name(dtype)}", "swiglu", dtype,
            lambda: [normal(0, sum(size.lengths), 2 * HIDDEN // size.narrow, device=device)],
            lambda leaves, backend: [swiglu(leaves[0], backend=backend)],
        )  # fmt: skip


def _contrastive(size: Size, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Operation]:
    """With ids, some of them shared as in training, and without."""
    ids = torch.arange(size.batch, device=device) // 2 * 2
    ids = torch.where(ids % 16 == 0, ids, torch.arange(size.batch, device=device))
    for kind in ("infonce", "sigmoid"):
        for by_ids in (True, False):
            for dtype in dtypes:

                def leaves(kind: str = kind) -> list[Tensor]:
                    sides = [normal(seed, size.batch, WIDTH // size.narrow, device=device) for seed in (0, 1)]
                    scalars = [torch.tensor(10.0, device=device)]
                    if kind == "sigmoid":
                        scalars.append(torch.tensor(-10.0, device=device))
                    return [*(F.normalize(side, dim=1) for side in sides), *scalars]

                def call(
                    leaves: Sequence[Tensor], backend: str, kind: str = kind, by_ids: bool = by_ids
                ) -> Sequence[Tensor]:
                    audio, text, *scalars = leaves
                    out = contrastive_loss(
                        audio, text, *scalars, kind=kind, ids=ids if by_ids else None, backend=backend
                    )
                    return [out.loss]

                yield Operation(
                    f"contrastive, {kind}{', ids' * by_ids}, {_name(dtype)}", "contrastive_loss", dtype, leaves, call,
                    asks=loss_variants("contrastive_loss", dtype),
                )  # fmt: skip


def _captions(size: Size, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Operation]:
    words, width = VOCABULARY // size.narrow, CAPTION_WIDTH // size.narrow
    target = torch.arange(size.tokens, device=device) * 7919 % words
    target[::5] = -100

    def call(leaves: Sequence[Tensor], backend: str) -> Sequence[Tensor]:
        hidden, vocabulary = leaves
        return [linear_cross_entropy(hidden, vocabulary, target, label_smoothing=0.1, backend=backend)]

    for dtype in dtypes:
        yield Operation(
            f"captions, {_name(dtype)}", "linear_cross_entropy", dtype,
            lambda: [normal(0, size.tokens, width, device=device), 0.1 * normal(1, words, width, device=device)], call,
            asks=loss_variants("linear_cross_entropy", dtype),
        )  # fmt: skip


def _prototypes(size: Size, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Operation]:
    count, width = PROTOTYPES // size.narrow, BOTTLENECK // size.narrow
    for dtype in dtypes:

        def leaves() -> list[Tensor]:
            rows = size.masked, count
            return [F.normalize(normal(seed, rows[seed], width, device=device), dim=1) for seed in (0, 1)]

        def call(leaves: Sequence[Tensor], backend: str, dtype: torch.dtype = dtype) -> Sequence[Tensor]:
            student, prototypes = leaves
            teacher, teacher_prototypes = (
                F.normalize(normal(seed, *like.shape, device=device), dim=1).to(dtype).to(like)
                for seed, like in ((2, student), (3, prototypes))
            )
            loss = prototype_cross_entropy(
                student, teacher, prototypes, teacher_prototypes, student_temperature=0.1, teacher_temperature=0.07,
                backend=backend,
            )  # fmt: skip
            return [loss]

        yield Operation(
            f"prototypes, {_name(dtype)}", "prototype_cross_entropy", dtype, leaves, call,
            asks=loss_variants("prototype_cross_entropy", dtype),
        )  # fmt: skip


def _log_mel(size: Size, device: str) -> Iterator[Operation]:
    config = MelConfig()
    frames = sum(config.num_frames(count) for count in size.samples)

    def call(leaves: Sequence[Tensor], backend: str) -> Sequence[Tensor]:
        offsets = torch.tensor([0, *accumulate(size.samples)], device=device)
        return [log_mel(leaves[0], offsets, config, total_frames=frames, backend=backend)]

    for dtype in (torch.float32, torch.int16):

        def leaves(dtype: torch.dtype = dtype) -> list[Tensor]:
            waveform = 0.1 * normal(0, sum(size.samples), device=device)
            return [waveform if dtype == torch.float32 else (waveform * 32768).to(torch.int16)]

        yield Operation(f"log_mel, {_name(dtype)}", "log_mel", dtype, leaves, call)
