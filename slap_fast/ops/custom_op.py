"""`torch.library.custom_op` with a fast path that bypasses PyTorch's dispatcher.

The dispatcher adds 9 us to each call, and a model makes thousands of calls a step. The registered op serves the
compiler, modes that intercept ops, function transforms, and tensors that are not plain memory. In all other cases a
call runs the implementation itself, inside an `autograd.Function` if a gradient is recorded.

`torch.ops.slap_fast` is public too. Its callers have bypassed the public function, so the registered op validates its
arguments, casts them under autocast, and raises where a derivative would be wrong.
"""

from __future__ import annotations

import inspect
import typing
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import Function, forward_ad, profiler
from torch.overrides import has_torch_function

from slap_fast.ops import autocast

P = ParamSpec("P")
R = TypeVar("R")


def _bits(*keys: DispatchKey) -> int:
    union = DispatchKeySet(keys[0])
    for key in keys[1:]:
        union = union | DispatchKeySet(key)
    return union.raw_repr()


# Dispatch keys of plain tensors: strided, not conjugate, negated, fake, wrapped or of a subclass; made inside or
# outside torch.inference_mode().
_PLAIN = frozenset(
    _bits(device, autocast, *made)
    for device, autocast, autograd in (
        (DispatchKey.CPU, DispatchKey.AutocastCPU, DispatchKey.AutogradCPU),
        (DispatchKey.CUDA, DispatchKey.AutocastCUDA, DispatchKey.AutogradCUDA),
    )
    for made in ((autograd, DispatchKey.ADInplaceOrView), ())
)
# Any other dispatch key of the calling thread belongs to a mode, a transform or a tracer.
_QUIET = ~_bits(
    DispatchKey.BackendSelect, DispatchKey.ADInplaceOrView, DispatchKey.AutocastCPU, DispatchKey.AutocastCUDA
)

_INSTEAD = 'write it in plain PyTorch operations, as backend="torch" of rms_norm and swiglu does'
_AUTOCAST = (DispatchKey.AutocastCPU, DispatchKey.AutocastCUDA)
_AUTOCAST_SET = DispatchKeySet(_AUTOCAST[0]) | DispatchKeySet(_AUTOCAST[1])


class CustomOp(Generic[P, R]):
    """An op of `torch.library`, with the fast path to its implementation."""

    def __init__(
        self,
        name: str,
        mutates_args: tuple[str, ...],
        check: Callable[P, tuple[Any, ...]] | None,
        rule: autocast.Rule | None,
        cast: tuple[str, ...],
        implementation: Callable[P, R],
    ):
        groups, schema = _flattened(implementation, mutates_args)
        # Each NamedTuple's class, its parameter's index, and the end of its fields once those before it are rebuilt.
        self._groups = [(group, i, i + len(group._fields)) for i, group in enumerate(groups) if group is not None]

        def checked(*args: Any) -> R:
            grouped = self._group(args)
            return implementation(*(grouped if check is None else check(*grouped)))  # type: ignore[call-arg]

        self._definition = torch.library.custom_op(name, checked, mutates_args=mutates_args, schema=schema)
        self._registered: Any = self._definition._opoverload
        self._implementation: Callable[..., R] = implementation
        self._apply: Callable[..., R] | None = None
        self._name = name
        arguments = self._registered._schema.arguments
        self._tensors = [place for place, argument in enumerate(arguments) if "Tensor" in str(argument.type)]
        self._mutated = [place for place, argument in enumerate(arguments) if argument.name in mutates_args]
        self._library = torch.library.Library(name.partition("::")[0], "FRAGMENT")  # kept: its deletion unregisters
        self._refuse_wrong_derivatives()
        castable = [place for place in self._tensors if not cast or arguments[place].name in cast]
        for key in _AUTOCAST:
            self._register_autocast(key, rule, castable)

    def _refuse_wrong_derivatives(self) -> None:
        """Raise for derivatives where PyTorch would give zero tangents, or an error that does not name the op."""
        differentiable: Callable[..., R] = torch._library.autograd.make_autograd_impl(
            self._registered, self._definition
        )

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> R:
            if forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
                raise NotImplementedError(
                    f"{self._name} has no forward-mode derivative (torch.func.jvp, jacfwd or hessian); {_INSTEAD}"
                )
            if torch._C._are_functorch_transforms_active() and torch._C._any_requires_grad(*args):
                raise NotImplementedError(
                    f"{self._name} has no derivative by torch.func.grad, vjp or jacrev; use torch.autograd.grad"
                )
            return differentiable(keyset, *args, **kwargs)

        self._override("Autograd", kernel)

    def _register_autocast(self, key: DispatchKey, rule: autocast.Rule | None, castable: list[int]) -> None:
        def kernel(_keyset: Any, *args: Any) -> Any:
            given = list(args)
            if rule is not None:
                places = [place for place in castable if place < len(args)]
                for place, x in zip(places, autocast.cast(rule, *(args[place] for place in places)), strict=True):
                    given[place] = x
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_SET):
                return self._registered(*given)

        self._override(key.name, kernel)

    def _override(self, key: str, kernel: Callable[..., Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid", category=UserWarning)
            operator = self._name.partition("::")[2]
            self._library.impl(operator, kernel, key, with_keyset=True, allow_override=True)

    def _group(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments as `implementation` takes them: each NamedTuple rebuilt from its fields."""
        for group, begin, end in self._groups:
            args = (*args[:begin], group(*args[begin:end]), *args[end:])
        return args

    def _flatten(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for _, i, _ in reversed(self._groups):
            args = (*args[:i], *args[i], *args[i + 1 :])
        return args

    def _taking_flat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return (lambda *flat: function(*self._group(flat))) if self._groups else function

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Like `torch.library.register_fake`."""
        self._definition.register_fake(self._taking_flat(function))
        return function

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any], twice: bool = False
    ) -> None:
        """Like `torch.library.register_autograd`.

        Args:
            backward: takes the context and gradients; returns one gradient per argument of the schema.
            setup_context: takes the context, the arguments (NamedTuples not flattened) and the output.
            twice: `backward` consists of differentiable ops only. If False, it raises under `create_graph=True`.
        """
        if not twice:
            backward = once_differentiable(self._name, backward)
        implementation, group = self._implementation, self._group

        def take_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context(ctx, group(inputs), output)

        self._definition.register_autograd(backward, setup_context=take_inputs)

        count = len(self._registered._schema.arguments)

        def forward(ctx: Any, *args: Any) -> R:
            output = implementation(*args)
            setup_context(ctx, args, output)
            return output

        # Autograd takes the flat arguments, the implementation the grouped ones, which come last so that the positions
        # in `ctx.needs_input_grad` are those of the schema. That tuple is one longer than the schema, and so is the
        # result of a backward that takes its length from it: hence `[:count]`.
        def forward_grouped(ctx: Any, *flat_and_grouped: Any) -> R:
            return forward(ctx, *flat_and_grouped[-1])

        def backward_grouped(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            return *backward(ctx, *grads)[:count], None

        passes = (forward_grouped, backward_grouped) if self._groups else (forward, backward)
        methods = dict(zip(("forward", "backward"), map(staticmethod, passes), strict=True))
        # Profilers name the call after the class. The parent's `apply` skips the check for transforms: see `_is_plain`.
        self._apply = super(Function, type(self._name, (Function,), methods)).apply  # type: ignore[misc]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Positional arguments only."""
        if kwargs:
            raise TypeError(f"{self._name} takes positional arguments only, and got {', '.join(kwargs)}")
        flat = self._flatten(args) if self._groups else args
        if torch.compiler.is_compiling() or not self._is_plain(flat):
            return self._registered(*flat)
        if torch._C._is_any_autocast_enabled():
            # The inputs were cast by the public function: the implementation runs without autocast.
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_SET):
                return self._call(args, flat)
        return self._call(args, flat)

    def _call(self, args: tuple[Any, ...], flat: tuple[Any, ...]) -> R:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*flat):
            if self._apply is None:  # no backward: the registered op raises when a gradient arrives
                return self._registered(*flat)
            return self._apply(*flat, args) if self._groups else self._apply(*flat)
        if profiler._is_profiler_enabled:
            with torch.profiler.record_function(self._name):
                return self._run(args, flat)
        return self._run(args, flat)

    def _run(self, args: tuple[Any, ...], flat: tuple[Any, ...]) -> R:
        result = self._implementation(*args)
        for place in self._mutated:
            mutated = flat[place]
            if isinstance(mutated, Tensor) and not mutated.is_inference():
                torch.autograd.graph.increment_version(mutated)
        return result

    def _is_plain(self, args: tuple[Any, ...]) -> bool:
        """Whether the fast path is safe: nothing but autograd observes the call."""
        if torch._C._dispatch_tls_local_include_set().raw_repr() & _QUIET or forward_ad._current_level >= 0:
            return False
        if has_torch_function(args):
            return False
        for place in self._tensors:
            tensor = args[place]
            if tensor is not None and torch._C._dispatch_keys(tensor).raw_repr() not in _PLAIN:
                return False
        return True


def _flattened(implementation: Callable[..., Any], mutates_args: tuple[str, ...]) -> tuple[list[Any | None], str]:
    """The NamedTuple class of each parameter (None for any other), and the schema with NamedTuples as their fields."""
    hints = typing.get_type_hints(implementation)
    returned = None if hints["return"] is type(None) else hints["return"]
    del hints["return"]
    groups = [hint if hasattr(hint, "_fields") else None for hint in hints.values()]
    kind, fields = inspect.Parameter.POSITIONAL_OR_KEYWORD, []
    for parameter, group in zip(inspect.signature(implementation).parameters.values(), groups, strict=True):
        if group is None:
            fields.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        for name, hint in typing.get_type_hints(group).items():
            fields.append(inspect.Parameter(name, kind, annotation=hint))
    signature = inspect.Signature(fields, return_annotation=returned)

    def prototype() -> None: ...

    prototype.__signature__ = signature  # type: ignore[attr-defined]
    return groups, torch.library.infer_schema(prototype, mutates_args=mutates_args)


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def once_differentiable(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """`backward` of the op `name`, made to raise under `create_graph=True`.

    PyTorch's decorator of that name raises only when a second backward arrives. For a loss, whose gradients do not
    depend on the incoming one, it silently drops the second derivative.
    """

    def once(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"{name} has no second derivative, and this backward was called with create_graph=True; {_INSTEAD}"
            )
        return backward(ctx, *grads)

    return once


def custom_op(
    name: str,
    *,
    mutates_args: tuple[str, ...] = (),
    check: Callable[..., tuple[Any, ...]] | None = None,
    rule: autocast.Rule | None = None,
    cast: tuple[str, ...] = (),
) -> Callable[[Callable[P, R]], CustomOp[P, R]]:
    """Decorator: `torch.library.custom_op` with positional arguments only.

    The schema is inferred from the annotations. A parameter annotated with a NamedTuple appears in the schema as the
    fields of the NamedTuple, so that arguments shared by op and backends are defined once. The decorated function, its
    fake, `check` and `setup_context` take the NamedTuple itself.

    Args:
        name: with its namespace, "slap_fast::...".
        mutates_args: names of the tensors that the op writes to.
        check: runs when users or compiled code call the registered op; the public function does the same before it
            calls the decorated op. Raises ValueError for arguments that would cause invalid memory reads, without
            waiting for a GPU. Returns the arguments to use.
        rule: dtype of the registered op's tensors under autocast; None: they are not cast.
        cast: names of the tensors to cast; empty: all.
    """

    def define(implementation: Callable[P, R]) -> CustomOp[P, R]:
        return CustomOp(name, mutates_args, check, rule, cast, implementation)

    return define
