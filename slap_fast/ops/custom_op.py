"""`torch.library.custom_op`, called without PyTorch's dispatcher where nobody but autograd looks on.

A registered op costs 9 us more a call than what it runs, and a model makes thousands of calls a step, forward and
backward. The registration is for the compiler, for modes that intercept ops, for function transforms and for tensors
that are no plain memory. Where none of these is at work, a call runs the implementation itself, and an
`autograd.Function` where a gradient is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import Function, forward_ad, profiler
from torch.overrides import has_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def _bits(*keys: DispatchKey) -> int:
    union = DispatchKeySet(keys[0])
    for key in keys[1:]:
        union = union | DispatchKeySet(key)
    return union.raw_repr()


# Strided memory that is neither conjugate, negated, fake, wrapped nor of a subclass; on each device as made anywhere,
# and under torch.inference_mode().
_PLAIN = frozenset(
    _bits(device, autocast, *made)
    for device, autocast, autograd in (
        (DispatchKey.CPU, DispatchKey.AutocastCPU, DispatchKey.AutogradCPU),
        (DispatchKey.CUDA, DispatchKey.AutocastCUDA, DispatchKey.AutogradCUDA),
    )
    for made in ((autograd, DispatchKey.ADInplaceOrView), ())
)
# Of the calling thread: what is always there, and autocast, which an op of ours passes through. Beyond it are modes,
# transforms and tracers.
_QUIET = ~_bits(
    DispatchKey.BackendSelect, DispatchKey.ADInplaceOrView, DispatchKey.AutocastCPU, DispatchKey.AutocastCUDA
)


class CustomOp(Generic[P, R]):
    """An op of `torch.library`, and the shortcut to its implementation."""

    def __init__(self, name: str, mutates_args: tuple[str, ...], schema: str | None, implementation: Callable[P, R]):
        self._definition = torch.library.custom_op(name, implementation, mutates_args=mutates_args, schema=schema)
        self._registered: Any = self._definition._opoverload
        self._implementation = implementation
        self._apply: Callable[P, R] | None = None
        self._name = name
        arguments = self._registered._schema.arguments
        self._tensors = [place for place, argument in enumerate(arguments) if "Tensor" in str(argument.type)]
        self._mutated = [place for place, argument in enumerate(arguments) if argument.name in mutates_args]

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `torch.library.register_fake`."""
        return self._definition.register_fake(function)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """As `torch.library.register_autograd`."""
        self._definition.register_autograd(backward, setup_context=setup_context)
        implementation: Callable[..., R] = self._implementation

        def forward(ctx: Any, *args: Any) -> R:
            output = implementation(*args)
            setup_context(ctx, args, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        # Profilers name the call after the class. Its own `apply` asks about transforms, which are not at work here.
        self._apply = super(Function, type(self._name, (Function,), methods)).apply  # type: ignore[misc]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or kwargs or not self._is_plain(args):
            return self._registered(*args, **kwargs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            # Without a formula the registered op raises when a backward arrives.
            return self._registered(*args) if self._apply is None else self._apply(*args, **kwargs)
        if profiler._is_profiler_enabled:
            with torch.profiler.record_function(self._name):
                return self._run(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result = self._implementation(*args, **kwargs)
        for place in self._mutated:
            mutated = args[place]
            if isinstance(mutated, Tensor) and not mutated.is_inference():
                torch.autograd.graph.increment_version(mutated)
        return result

    def _is_plain(self, args: tuple[Any, ...]) -> bool:
        """Whether the implementation can be called as it is, with autograd alone looking on."""
        if torch._C._dispatch_tls_local_include_set().raw_repr() & _QUIET or forward_ad._current_level >= 0:
            return False
        if has_torch_function(args):
            return False
        for place in self._tensors:
            tensor = args[place]
            if tensor is not None and torch._C._dispatch_keys(tensor).raw_repr() not in _PLAIN:
                return False
        return True


def custom_op(
    name: str, *, mutates_args: tuple[str, ...] = (), schema: str | None = None
) -> Callable[[Callable[P, R]], CustomOp[P, R]]:
    """Decorator: `torch.library.custom_op`, to be called by position.

    Args:
        name: with its namespace, "slap_fast::...".
        mutates_args: names of the tensors that it writes to.
        schema: None: by the annotations.
    """

    def define(implementation: Callable[P, R]) -> CustomOp[P, R]:
        return CustomOp(name, mutates_args, schema, implementation)

    return define
