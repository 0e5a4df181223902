"""Worker of the tests of losses across ranks; a separate module because spawned processes import it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from slap_fast.ops.contrastive import contrastive_loss
from slap_fast.ops.linear_cross_entropy import linear_cross_entropy
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from slap_fast.training.losses import mean_over_tokens

# world size -> clips per rank: unequal, and one rank with none.
CLIPS = {1: [7], 2: [5, 2], 3: [4, 0, 3], 4: [1, 3, 1, 2]}
TOKENS = [3, 0, 2, 4, 1, 5, 2]
CLIP_IDS = [4, 9, 2, 4, 9, 6, 4]
EMBEDDING_WIDTH = 4
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Parameters, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"audio": (6, 4), "text": (6, 4), "student": (6, 4), "prototypes": (5, 4), "vocabulary": (8, 6)}
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    values |= {"logit_scale": torch.tensor([20.0]), "logit_bias": torch.tensor([-6.0])}
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


class Data:
    """Clips `begin` to `end` of the global batch: all, or those of one rank."""

    def __init__(self, begin: int, end: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(1)
        offsets = [0, *accumulate(TOKENS)]
        clips, tokens = slice(begin, end), slice(offsets[begin], offsets[end])
        features = torch.randn(2, len(TOKENS), 6, generator=generator, dtype=torch.float64).to(dtype)
        dense = torch.randn(2, sum(TOKENS), 6, generator=generator, dtype=torch.float64).to(dtype)
        teacher_prototypes = torch.randn(5, 4, generator=generator, dtype=torch.float64).to(dtype)
        targets = torch.randint(8, (sum(TOKENS),), generator=generator)
        targets[::4] = -100
        self.clips = end - begin
        self.lengths = TOKENS[clips]
        self.cu_seqlens = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        self.ids = torch.tensor(CLIP_IDS)[clips]
        self.features = features[:, clips]
        self.dense = dense[:, tokens]
        self.teacher_prototypes = teacher_prototypes
        self.targets = targets[tokens]

    def to(self, dtype: torch.dtype) -> Data:
        self.features, self.dense, self.teacher_prototypes = (
            x.to(dtype) for x in (self.features, self.dense, self.teacher_prototypes)
        )
        return self

    def embeddings(self, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        audio, text = (x @ weights[name] for x, name in zip(self.features, ("audio", "text"), strict=True))
        return F.normalize(audio, dim=-1), F.normalize(text, dim=-1)

    def prototypes(self, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        student = F.normalize(self.dense[0] @ weights["student"], dim=-1)
        teacher = F.normalize(self.dense[1, :, :4], dim=-1)
        return student, teacher, weights["prototypes"], F.normalize(self.teacher_prototypes, dim=-1)


Loss = Callable[[dict[str, Tensor], Data, dist.ProcessGroup | None], tuple[Tensor, ...]]


def _contrastive(
    weights: dict[str, Tensor], data: Data, group: dist.ProcessGroup | None, *, kind: str, ids: bool, exchange: str
) -> tuple[Tensor, ...]:
    return contrastive_loss(
        *data.embeddings(weights),
        weights["logit_scale"],
        weights["logit_bias"],
        kind=kind,
        ids=data.ids if ids else None,
        group=group,
        exchange=exchange,
        chunk_size=3,
    )


def _prototypes(
    weights: dict[str, Tensor], data: Data, group: dist.ProcessGroup | None, *, by_clip: bool
) -> tuple[Tensor, ...]:
    loss = prototype_cross_entropy(
        *data.prototypes(weights),
        student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=TEACHER_TEMPERATURE,
        cu_seqlens=data.cu_seqlens if by_clip else None,
        group=group,
    )
    return (loss,)


def _captioning(weights: dict[str, Tensor], data: Data, group: dist.ProcessGroup | None) -> tuple[Tensor, ...]:
    token_sum = linear_cross_entropy(data.dense[0], weights["vocabulary"], data.targets, reduction="sum")
    return (mean_over_tokens(token_sum, data.targets, group=group),)


LOSSES: dict[str, Loss] = {
    **{
        f"{kind}{' with ids' if ids else ''}, {exchange}": functools.partial(
            _contrastive, kind=kind, ids=ids, exchange=exchange
        )
        for kind in ("infonce", "sigmoid")
        for ids in (False, True)
        for exchange in ("gather", "ring")
    },
    "prototypes by clip": functools.partial(_prototypes, by_clip=True),
    "prototypes by token": functools.partial(_prototypes, by_clip=False),
    "captioning": _captioning,
}
DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16}


class LargestBlock(TorchDispatchMode):
    """Records the largest number of rows of any tensor as wide as an embedding."""

    rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[1] == EMBEDDING_WIDTH:
                self.rows = max(self.rows, tensor.shape[0])
        return result


def _rows_held(exchange: str, data: Data) -> int:
    """Largest number of rows of such tensors in forward and backward, without the embeddings themselves."""
    weights = parameters()
    audio, text = (x.detach().requires_grad_() for x in data.embeddings(weights))
    with LargestBlock() as largest:
        loss = contrastive_loss(audio, text, weights["logit_scale"], group=dist.group.WORLD, exchange=exchange).loss
        loss.backward()
    return largest.rows


def run_rank(rank: int, world_size: int, folder: str) -> None:
    """Compute every loss on the clips of this rank; saves values and gradients in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    begin = sum(CLIPS[world_size][:rank])
    results = {}
    for dtype_name, dtype in DTYPES.items():
        data = Data(begin, begin + CLIPS[world_size][rank], dtype)
        for name, function in LOSSES.items():
            weights = parameters(dtype)
            values = function(weights, data, dist.group.WORLD)
            values[0].backward()
            gradients = {key: weight.grad for key, weight in weights.items() if weight.grad is not None}
            results[name, dtype_name] = [value.detach() for value in values], gradients
    held = {exchange: _rows_held(exchange, Data(begin, begin + data.clips)) for exchange in ("gather", "ring")}
    torch.save((data.clips, results, held), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
