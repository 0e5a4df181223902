"""`torch.library.custom_op`, called without PyTorch's dispatcher where nobody but autograd looks on.

A registered op costs 9 us more a call than what it runs, and a model makes thousands of calls a step, forward and
backward. The registration is for the compiler, for modes that intercept ops, for function transforms and for tensors
that are no plain memory. Where none of these is at work, a call runs the implementation itself, and an
`autograd.Function` where a gradient is recorded.

`torch.ops.slap_fast` is public as well. What is called there was not seen by the function that users call: it is
checked first, cast as autocast asks, and refused where a derivative would be wrong.
"""

from __future__ import annotations

import inspect
import typing
import warnings
from collections.abc import Callable, Sequence
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
# Of the calling thread: what is always there. Beyond it are modes, transforms and tracers.
_QUIET = ~_bits(
    DispatchKey.BackendSelect, DispatchKey.ADInplaceOrView, DispatchKey.AutocastCPU, DispatchKey.AutocastCUDA
)


_INSTEAD = 'write it in plain PyTorch operations, as backend="torch" of rms_norm and swiglu does'
_AUTOCAST = (DispatchKey.AutocastCPU, DispatchKey.AutocastCUDA)
_AUTOCAST_SET = DispatchKeySet(_AUTOCAST[0]) | DispatchKeySet(_AUTOCAST[1])


class CustomOp(Generic[P, R]):
    """An op of `torch.library`, and the shortcut to its implementation."""

    def __init__(
        self,
        name: str,
        mutates_args: tuple[str, ...],
        given_schema: str | None,
        check: Callable[P, tuple[Any, ...]] | None,
        rule: autocast.Rule | None,
        cast: tuple[str, ...],
        implementation: Callable[P, R],
    ):
        groups, schema = ([], given_schema) if given_schema else _flattened(implementation, mutates_args)
        self._places = _places(groups)  # empty without a NamedTuple

        def checked(*args: Any) -> R:
            grouped = self._group(args)
            return implementation(*(grouped if check is None else check(*grouped)))  # type: ignore[call-arg, arg-type]

        self._definition = torch.library.custom_op(name, checked, mutates_args=mutates_args, schema=schema)
        self._registered: Any = self._definition._opoverload
        self._implementation = implementation
        self._apply: Callable[..., R] | None = None
        self._name = name
        arguments = self._registered._schema.arguments
        self._tensors = [place for place, argument in enumerate(arguments) if "Tensor" in str(argument.type)]
        self._mutated = [place for place, argument in enumerate(arguments) if argument.name in mutates_args]
        self._library = torch.library.Library(name.partition("::")[0], "FRAGMENT")  # registrations last as long as it
        self._refuse_wrong_derivatives()
        castable = [place for place in self._tensors if not cast or arguments[place].name in cast]
        for key in _AUTOCAST:
            self._register_autocast(key, rule, castable)

    def _refuse_wrong_derivatives(self) -> None:
        """Raise where PyTorch gives tangents of zero, or a message that names none of what the user called."""
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

    def _group(self, flat: Sequence[Any]) -> Sequence[Any]:
        """The arguments as `implementation` takes them: each NamedTuple rebuilt from its fields."""
        if not self._places:
            return flat
        return [flat[place] if group is None else group(*flat[place]) for group, place in self._places]

    def _flatten(self, grouped: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self._places:
            return grouped
        flat: tuple[Any, ...] = ()
        for (group, _), argument in zip(self._places, grouped, strict=True):
            flat += (argument,) if group is None else argument
        return flat

    def _taking_flat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return (lambda *flat: function(*self._group(flat))) if self._places else function

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `torch.library.register_fake`."""
        self._definition.register_fake(self._taking_flat(function))
        return function

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any], twice: bool = False
    ) -> None:
        """As `torch.library.register_autograd`.

        Args:
            backward: gets a context and gradients; returns one gradient for each argument of the schema.
            setup_context: gets a context, the arguments (NamedTuples as such) and the output.
            twice: that `backward` is made of differentiable ops alone. Where it is not, it raises under
                `create_graph=True`.
        """
        if not twice:
            backward = once_differentiable(self._name, backward)
        implementation, group = self._implementation, self._group

        def take_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context(ctx, group(inputs), output)

        self._definition.register_autograd(backward, setup_context=take_inputs)

        def forward(ctx: Any, *args: Any) -> R:
            inputs = group(args)
            output = implementation(*inputs)
            setup_context(ctx, inputs, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        # Profilers name the call after the class. Its own `apply` asks about transforms, which are not at work here.
        self._apply = super(Function, type(self._name, (Function,), methods)).apply  # type: ignore[misc]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it by position: a keyword is refused."""
        if kwargs:
            raise TypeError(f"{self._name} is called by position, and got {', '.join(kwargs)}")
        flat = self._flatten(args)
        if torch.compiler.is_compiling() or not self._is_plain(flat):
            return self._registered(*flat)
        if torch._C._is_any_autocast_enabled():
            # What is cast was cast: inside, products are in the types that they are written in.
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_SET):
                return self._call(*flat)
        return self._call(*flat)

    def _call(self, *args: Any) -> R:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            # Without a formula the registered op raises when a backward arrives.
            return self._registered(*args) if self._apply is None else self._apply(*args)
        if profiler._is_profiler_enabled:
            with torch.profiler.record_function(self._name):
                return self._run(*args)
        return self._run(*args)

    def _run(self, *args: Any) -> R:
        result = self._implementation(*self._group(args))  # type: ignore[call-arg, arg-type]
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


def _places(groups: list[Any | None]) -> list[tuple[Any | None, Any]]:
    """Each parameter's NamedTuple class, if any, with its slice or index among the flat arguments."""
    if not any(groups):
        return []
    places: list[tuple[Any | None, Any]] = []
    begin = 0
    for group in groups:
        end = begin + (1 if group is None else len(group._fields))
        places.append((group, begin if group is None else slice(begin, end)))
        begin = end
    return places


def _flattened(implementation: Callable[..., Any], mutates_args: tuple[str, ...]) -> tuple[list[Any | None], str]:
    """The NamedTuple class of each parameter (None: a plain one), and the schema in which their fields stand flat."""
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
            default = group._field_defaults.get(name, inspect.Parameter.empty)
            fields.append(inspect.Parameter(name, kind, default=default, annotation=hint))
    signature = inspect.Signature(fields, return_annotation=returned)

    def prototype() -> None: ...

    prototype.__signature__ = signature  # type: ignore[attr-defined]
    return groups, torch.library.infer_schema(prototype, mutates_args=mutates_args)


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def once_differentiable(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """`backward` of the op `name`, which raises where its results would be differentiated again.

    PyTorch's decorator raises only when a backward arrives, and where gradients do not depend on the incoming one, as
    those of a loss, it lets their derivative be cut without a word.
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
    schema: str | None = None,
    check: Callable[..., tuple[Any, ...]] | None = None,
    rule: autocast.Rule | None = None,
    cast: tuple[str, ...] = (),
) -> Callable[[Callable[P, R]], CustomOp[P, R]]:
    """Decorator: `torch.library.custom_op`, to be called by position.

    The schema follows from the annotations. A parameter annotated with a NamedTuple stands in it as the NamedTuple's
    fields, so that what several ops and backends take is written once. The decorated function, its fake, `check` and
    `setup_context` get the NamedTuple.

    Args:
        name: with its namespace, "slap_fast::...".
        mutates_args: names of the tensors that it writes to.
        check: run where the registered op is called, by users or compiled code: raises ValueError for arguments through
            which memory would be misread, without a wait for a GPU, and returns the arguments to go on with. The
            function around a decorated op has done as much.
        rule: what autocast makes of the tensors of the registered op; None: it passes them through.
        cast: the names of those that it concerns; none: all.
    """

    def define(implementation: Callable[P, R]) -> CustomOp[P, R]:
        return CustomOp(name, mutates_args, schema, check, rule, cast, implementation)

    return define
