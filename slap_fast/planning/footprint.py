"""What a micro-batch takes and does, found by running the model on tensors that have shapes and no memory.

On PyTorch's meta device forward and backward run as anywhere, but nothing is computed and nothing allocated: a tensor
is only counted, from when it is made to when nobody holds it any more. So what the layers save for backward, what
activation checkpointing makes of it, and which products are made, follow from the code that will run. What an op of
this package needs inside, while it runs, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slap_fast.config.model import ModelConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.ops import dispatch
from slap_fast.ops.packed import PackedLayout
from slap_fast.training.model import GlobalBatchContext, PretrainingModel

_TEMPERATURE = 0.07  # of the teacher; no size depends on it
_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.bmm.default: 0}


@dataclass(frozen=True)
class Lengths:
    """The clips of a micro-batch: samples, and tokens of the caption."""

    samples: Sequence[int]
    captions: Sequence[int]
    masked_fraction: float


@dataclass(frozen=True)
class Passes:
    """Of one forward pass, and one backward pass where there is a gradient.

    Attributes:
        held: bytes of activations, at most at one time, if gradients of parameters left at once.
        held_with_gradients: the same, with all gradients of parameters kept until the end.
        products: `(operations, bytes)` of each matrix product with parameters.
        traffic: bytes that everything else reads and writes.
        calls: how many kernels are started.
        modules: how many modules are run.
    """

    held: float
    held_with_gradients: float
    products: tuple[tuple[float, float], ...]
    traffic: float
    calls: float
    modules: float

    def between(self, other: Passes, share: float) -> Passes:
        """This for 0, `other` for 1: all of it grows evenly with the number of clips of one kind."""

        def mix(own: float, others: float) -> float:
            return own + share * (others - own)

        return Passes(
            mix(self.held, other.held),
            mix(self.held_with_gradients, other.held_with_gradients),
            tuple((mix(a, c), mix(b, d)) for (a, b), (c, d) in zip(self.products, other.products, strict=True)),
            mix(self.traffic, other.traffic),
            mix(self.calls, other.calls),
            mix(self.modules, other.modules),
        )


def training_passes(model: PretrainingModel, lengths: Lengths, device: str, *, in_parts: bool) -> Passes:
    """Forward and backward over a micro-batch.

    Args:
        model: on the meta device, in the dtype that it will train in.
        device: "cpu" or "cuda", where it will train.
        in_parts: as one of several micro-batches of a batch, else as the whole.
    """
    batch = _batch(model.student.config, lengths)
    with _counting(model, device) as counter:
        if in_parts:
            outputs = model(batch, _TEMPERATURE, _global_batch_context(model, batch), call="micro_batch_losses")
        else:
            outputs = model(batch, _TEMPERATURE)
        outputs["loss"].backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counter.result()


def embedding_passes(model: PretrainingModel, lengths: Lengths, device: str) -> Passes:
    """The pass without gradients that comes before, where a batch is taken in parts."""
    batch = _batch(model.student.config, lengths)
    with _counting(model, device) as counter:
        model(batch, call="embeddings")
    return counter.result()


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.gradients = 0
        self._now = self._most = self._most_without = 0
        self._live: set[int] = set()
        self._products: list[tuple[float, float]] = []
        self._traffic = self._calls = self.modules = 0

    def result(self) -> Passes:
        return Passes(self._most_without, self._most, tuple(self._products), self._traffic, self._calls, self.modules)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in given}
        for tensor in made:
            # A view, or the result of an update in place, is no memory of its own.
            if tensor.untyped_storage()._cdata not in known:
                self._hold(tensor.untyped_storage())
        if func in _PRODUCTS:
            left = given[_PRODUCTS[func]]
            operations = 2.0 * left.numel() * made[0].shape[-1]
            self._products.append((operations, float(sum(tensor.nbytes for tensor in (*given, *made)))))
        elif not func.is_view and made:
            self._traffic += sum(tensor.nbytes for tensor in (*given, *made))
        self._calls += not func.is_view
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        self._live.add(key)
        weakref.finalize(storage, self._release, key, size)
        self._now += size
        self._most = max(self._most, self._now)
        self._most_without = max(self._most_without, self._now - self.gradients)

    def _release(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._now -= size


@contextmanager
def _counting(model: PretrainingModel, device: str) -> Iterator[_Counter]:
    counter = _Counter()

    def kept(parameter: Tensor) -> None:
        assert parameter.grad is not None
        counter.gradients += parameter.grad.nbytes

    def run(module: nn.Module, inputs: object) -> None:
        counter.modules += 1

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(kept) for parameter in trained]
    hooks += [module.register_forward_pre_hook(run) for module in model.modules()]
    try:
        # What a forward pass makes without a device named is made on the meta device too.
        with torch.device("meta"), _backends_of(device), counter:
            yield counter
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _backends_of(device: str) -> Iterator[None]:
    """Ops ask for a backend by the device of their tensors, and what they keep depends on it."""
    select = dispatch.select

    def elsewhere(op: str, requested: str, **traits: object) -> str:
        # Only here it matters. The norm that PyTorch has on a GPU keeps what native code keeps; the one that it has for
        # meta tensors keeps more.
        on = device if op == "swiglu" else "cpu"
        return select(op, requested, **{**traits, "device": torch.device(on)})

    dispatch.select = elsewhere
    try:
        yield
    finally:
        dispatch.select = select


def _batch(config: ModelConfig, lengths: Lengths) -> Batch:
    samples, captions = list(lengths.samples), list(lengths.captions)
    frames = [config.mel.num_frames(count) for count in samples]
    tokens = [config.num_tokens(count) for count in samples]
    masked = [round(lengths.masked_fraction * count) for count in tokens]

    def layout(counts: list[int], dtype: torch.dtype = torch.int32) -> PackedLayout:
        return PackedLayout.from_lengths(counts, device="meta", dtype=dtype)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return Batch(
        waveform=empty(sum(samples), dtype=torch.float32),
        samples=layout(samples, torch.int64),
        frames=layout(frames),
        tokens=layout(tokens),
        time_masked=empty(sum(frames), dtype=torch.bool),
        mel_masked=empty(len(samples), config.mel.n_mels, dtype=torch.bool),
        masked_tokens=empty(sum(masked), dtype=torch.int64),
        masked=layout(masked),
        input_ids=empty(sum(captions), dtype=torch.int64),
        text=layout(captions),
        clip_ids=empty(len(samples), dtype=torch.int64),
    )


def _global_batch_context(model: PretrainingModel, batch: Batch) -> GlobalBatchContext:
    config = model.student.config
    dtype = model.student.audio_encoder.mask_token.dtype

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    head, clips = config.prototype, len(batch)
    return GlobalBatchContext(
        audio_gradient=empty(clips, config.audio.width),
        text_gradient=empty(clips, config.audio.width),
        logit_scale_gradient=empty(1, dtype=torch.float32),
        teacher_bottleneck=empty(batch.masked.total, head.bottleneck),
        teacher_prototypes=empty(head.prototypes, head.bottleneck),
        potential=empty(head.prototypes, dtype=torch.float32),
        clip_share=1.0,
        token_share=empty(dtype=torch.float32),
    )
