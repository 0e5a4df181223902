"""Memory and work of a micro-batch, counted by running the model on PyTorch's meta device.

On the meta device forward and backward run as usual, but nothing is computed or allocated. Each storage is counted from
its creation until it is freed, so activations saved for backward, the effect of activation checkpointing, and all
matrix products follow from the code that training runs. Temporary buffers inside the ops of this package are not
counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence, ValuesView
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slap_fast.config.model import ModelConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.ops import dispatch
from slap_fast.ops.packed import PackedLayout
from slap_fast.training.model import ContrastiveTensors, GlobalBatchContext, PretrainingModel, TeacherTargets

_TEACHER_TEMPERATURE = 0.07  # no size depends on it
# Matrix products, with the position of their left factor among the tensor arguments.
_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.bmm.default: 0}


@dataclass(frozen=True)
class Lengths:
    """Lengths of the clips of a micro-batch, in samples, and of their captions, in tokens."""

    samples: Sequence[int]
    captions: Sequence[int]
    masked_fraction: float


@dataclass(frozen=True)
class PassCost:
    """Cost of a forward pass, and of its backward pass if it has one.

    Attributes:
        peak_bytes: peak of activation memory, if each parameter gradient is freed as soon as it is complete.
        peak_bytes_with_gradients: the same, with all parameter gradients kept until the end.
        products: `(FLOPs, bytes)` of each matrix product with parameters.
        traffic: bytes that all other operators read and write.
        calls: number of kernel launches.
        modules: number of module calls.
    """

    peak_bytes: float
    peak_bytes_with_gradients: float
    products: tuple[tuple[float, float], ...]
    traffic: float
    calls: float
    modules: float

    def interpolate(self, other: PassCost, weight: float) -> PassCost:
        """Linear interpolation: this cost for a `weight` of 0, `other` for 1."""

        def mix(a: float, b: float) -> float:
            return a + weight * (b - a)

        return PassCost(
            mix(self.peak_bytes, other.peak_bytes),
            mix(self.peak_bytes_with_gradients, other.peak_bytes_with_gradients),
            tuple((mix(a, c), mix(b, d)) for (a, b), (c, d) in zip(self.products, other.products, strict=True)),
            mix(self.traffic, other.traffic),
            mix(self.calls, other.calls),
            mix(self.modules, other.modules),
        )


def training_cost(model: PretrainingModel, lengths: Lengths, device: str, *, accumulated: bool) -> PassCost:
    """Cost of forward and backward over a micro-batch.

    Args:
        model: on the meta device, in the dtype of training.
        device: "cpu" or "cuda", the device of training.
        accumulated: it is one of several micro-batches of a batch, else the whole batch.
    """
    batch = _batch(model.student.config, lengths)
    with _counting(model, device) as counter:
        if accumulated:
            outputs = model(batch, _TEACHER_TEMPERATURE, _global_batch_context(model, batch), call="micro_batch_losses")
        else:
            outputs = model(batch, _TEACHER_TEMPERATURE)
        outputs["loss"].backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counter.result()


def embedding_cost(model: PretrainingModel, lengths: Lengths, device: str) -> PassCost:
    """Cost of the pass without gradients that precedes the losses of an accumulated batch."""
    batch = _batch(model.student.config, lengths)
    with _counting(model, device) as counter:
        model(batch, call="embeddings")
    return counter.result()


class _Counter(TorchDispatchMode):
    """Counts memory, products, traffic and calls of all operators that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_bytes = 0
        self._bytes = self._peak = self._peak_without_gradients = 0
        self._live: set[int] = set()
        self._products: list[tuple[float, float]] = []
        self._traffic = self._calls = self.modules = 0
        self._allocated_by: dict[Any, _Allocations | None] = {}

    def result(self) -> PassCost:
        return PassCost(
            self._peak_without_gradients,
            self._peak,
            tuple(self._products),
            self._traffic,
            self._calls,
            self.modules,
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((args, kwargs.values())))
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        result = self._result(func, args, kwargs, known)
        outputs = list(_tensors((result,)))
        for tensor in outputs:
            # Views and results of in-place operators share the storage of an input.
            if tensor.untyped_storage()._cdata not in known:
                self._allocate(tensor.untyped_storage())
        if func in _PRODUCTS:
            left = inputs[_PRODUCTS[func]]
            flops = 2.0 * left.numel() * outputs[0].shape[-1]
            self._products.append((flops, float(sum(tensor.nbytes for tensor in (*inputs, *outputs)))))
        elif not func.is_view and outputs:
            self._traffic += sum(tensor.nbytes for tensor in (*inputs, *outputs))
        self._calls += not func.is_view
        return result

    def _result(self, func: Any, args: Any, kwargs: Any, known: set[int]) -> Any:
        """What `func` returns. PyTorch's Python code for its sizes runs once, not in each layer: it takes longest."""
        if func.is_view or func._schema.is_mutable:
            return func(*args, **kwargs)
        call = (func, _signature(args), _signature(tuple(kwargs.items())))
        if call not in self._allocated_by:
            result = func(*args, **kwargs)
            self._allocated_by[call] = _allocations(result, known)
            return result
        allocated = self._allocated_by[call]
        return func(*args, **kwargs) if allocated is None else allocated.repeat()

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        self._live.add(key)
        weakref.finalize(storage, self._free, key, size)
        self._bytes += size
        self._peak = max(self._peak, self._bytes)
        self._peak_without_gradients = max(self._peak_without_gradients, self._bytes - self.gradient_bytes)

    def _free(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._bytes -= size


class _Allocations(NamedTuple):
    """New tensors that an operator returned, each without a gap in its storage."""

    sequence: type[list[Any]] | type[tuple[Any, ...]] | None  # None: a single tensor
    tensors: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype] | None, ...]

    def repeat(self) -> Any:
        made = [
            None if tensor is None else torch.empty_strided(*tensor[:2], dtype=tensor[2], device="meta")
            for tensor in self.tensors
        ]
        return made[0] if self.sequence is None else self.sequence(made)


def _allocations(result: Any, known: set[int]) -> _Allocations | None:
    """None if it has anything else than new tensors; `known`: storages of the arguments."""
    sequence = type(result) if type(result) in (list, tuple) else None
    found = result if sequence else (result,)
    if not all(tensor is None or isinstance(tensor, Tensor) for tensor in found):
        return None
    tensors = tuple(None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype) for tensor in found)
    allocations = _Allocations(sequence, tensors)
    storages = [tensor.untyped_storage() for tensor in found if tensor is not None]
    keys = {storage._cdata for storage in storages}
    if known & keys or len(keys) < len(storages):
        return None  # a view of an argument, or of another result
    repeated = [tensor.untyped_storage().nbytes() for tensor in _tensors((allocations.repeat(),))]
    return allocations if [storage.nbytes() for storage in storages] == repeated else None


def _signature(value: Any) -> Any:
    """What the sizes of a result depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return type(value), value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, ValuesView)):
            yield from _tensors(value)


@contextmanager
def _counting(model: PretrainingModel, device: str) -> Iterator[_Counter]:
    counter = _Counter()

    def count_gradient(parameter: Tensor) -> None:
        assert parameter.grad is not None
        counter.gradient_bytes += parameter.grad.nbytes

    def count_module(module: nn.Module, inputs: object) -> None:
        counter.modules += 1

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(count_gradient) for parameter in trained]
    hooks += [module.register_forward_pre_hook(count_module) for module in model.modules()]
    try:
        # The forward pass also creates tensors without an explicit device.
        with torch.device("meta"), _backends_of(device), counter:
            yield counter
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _backends_of(device: str) -> Iterator[None]:
    """Selects the op backends of `device` for meta tensors: the tensors saved for backward depend on the backend."""
    select = dispatch.select

    def select_for_device(op: str, requested: str, **traits: object) -> str:
        if op == "linear":  # saves the same tensors with any backend, and PyTorch's products are counted
            return "torch"
        # Only swiglu saves different tensors on CPU and GPU. The other ops take the CPU backends: PyTorch's RMSNorm for
        # meta tensors saves more than its GPU kernel, which saves the same as the native one.
        chosen = device if op == "swiglu" else "cpu"
        return select(op, requested, **{**traits, "device": torch.device(chosen)})

    dispatch.select = select_for_device
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
    config, objectives = model.student.config, model.student.objectives
    dtype = model.student.audio_encoder.mask_token.dtype

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    head, clips, width = config.prototype, len(batch), config.audio.width
    contrastive = ContrastiveTensors(empty(clips, width), empty(clips, width), empty(1, dtype=torch.float32))
    teacher = TeacherTargets(
        bottleneck=empty(batch.masked.total, head.bottleneck),
        prototypes=empty(head.prototypes, head.bottleneck),
        potential=empty(head.prototypes, dtype=torch.float32),
    )
    return GlobalBatchContext(
        contrastive if "contrastive" in objectives else None,
        teacher if "self_distillation" in objectives else None,
        empty(dtype=torch.float32) if "caption" in objectives else None,
        clip_share=1.0,
    )
