"""Backend selection: one table of backends per op, consulted at every call and printed by `slap-fast info`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from slap_fast.errors import SlapFastError


class CannotServeError(SlapFastError, ValueError):
    """The requested backend, or with "auto" every backend, cannot serve a call that is otherwise valid."""


def _available() -> str | None:
    return None


def _accepts(**_traits: object) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: what users pass as `backend=`.
        unavailable: why it cannot serve on this machine at all, None if it can; called once per process.
        rejects: called with the call's traits as keywords (device, dtype, ...): why it cannot serve this call, None if
            it can. Runs at every call and under `torch.compile`: plain comparisons only.
    """

    name: str
    unavailable: Callable[[], str | None] = _available
    rejects: Callable[..., str | None] = _accepts


_backends: dict[str, tuple[Backend, ...]] = {}
_preferred: dict[str, str] = {}  # set by `preferring`
_reasons: dict[str, tuple[str | None, ...]] = {}


def register(op: str, backends: Sequence[Backend]) -> None:
    """Set the backends of `op`, in order of preference; a second call replaces the first.

    Raises:
        ValueError: no backend, two of one name, or one named "auto".
    """
    names = [backend.name for backend in backends]
    if not names or len(set(names)) < len(names) or "auto" in names:
        raise ValueError(f"{op}: the backends are {names}; pass at least one, with distinct names other than 'auto'")
    _backends[op] = tuple(backends)
    _reasons.pop(op, None)


def _unavailable(op: str) -> tuple[str | None, ...]:
    """Why each backend of `op` cannot serve on this machine."""
    if op not in _reasons:
        _reasons[op] = tuple(backend.unavailable() for backend in _backends[op])
    return _reasons[op]


# The compiler cannot trace the probes and takes their result as a constant. This is what
# torch.compiler.assume_constant_result does, without its import of the whole compiler, which takes seconds.
_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def select(op: str, requested: str, **traits: object) -> str:
    """Name of the backend that serves a call of `op` with `traits`.

    An exported program may run on another machine: while `torch.export` traces, "auto" stays "auto", and the registered
    op selects when it runs.

    Args:
        op: a registered op.
        requested: name of a backend, or "auto" for the first that can serve.
        traits: what `Backend.rejects` takes.

    Raises:
        ValueError: unknown op or backend.
        CannotServeError: the requested backend, or with "auto" every backend, cannot serve; gives the reasons.
    """
    if op not in _backends:
        raise ValueError(f"unknown op {op!r}; registered: {', '.join(sorted(_backends)) or 'none'}")
    # Not `torch.compiler.is_exporting()`: under torch.compile, the compiler of torch 2.11 answers True for it.
    if requested == "auto" and torch.compiler._is_exporting_flag:
        return "auto"
    backends = _backends[op]
    candidates: Iterable[tuple[Backend, str | None]] = zip(backends, _unavailable(op), strict=True)
    if requested == "auto" and op in _preferred:
        known = list(candidates)
        first = [candidate for candidate in known if candidate[0].name == _preferred[op]]
        candidates = [*first, *(candidate for candidate in known if candidate[0].name != _preferred[op])]
    refusals = []
    for backend, reason in candidates:
        if requested not in ("auto", backend.name):
            continue
        if reason is None:
            reason = backend.rejects(**traits)
        if reason is None:
            return backend.name
        refusals.append(f"{backend.name}: {reason}")
    if not refusals:
        names = ", ".join(["auto", *(backend.name for backend in backends)])
        raise ValueError(f"{op} has no backend {requested!r}; choose one of {names}")
    raise CannotServeError(f"{op}: backend {requested!r} cannot serve this call ({'; '.join(refusals)})")


@contextmanager
def preferring(**backends: str) -> Iterator[None]:
    """Inside the block, `backend="auto"` tries the named backend of each named op first. For benchmarks and tests.

        with dispatch.preferring(rms_norm="torch", swiglu="torch"):
            loss = model(batch)

    It holds for the whole process. A backward uses the backend of its forward.

    Raises:
        ValueError: an unknown op or backend.
    """
    for op, name in backends.items():
        if name not in [backend.name for backend in _backends.get(op, ())]:
            raise ValueError(f"{op!r} has no backend {name!r}; `slap-fast info` lists the backends of each op")
    before = dict(_preferred)
    _preferred.update(backends)
    try:
        yield
    finally:
        _preferred.clear()
        _preferred.update(before)


def report() -> dict[str, list[tuple[str, str | None]]]:
    """For every op its backends in order of preference, each with why it cannot serve on this machine, or None."""
    return {op: [(backend.name, _probe(backend)) for backend in backends] for op, backends in sorted(_backends.items())}


def _probe(backend: Backend) -> str | None:
    try:
        return backend.unavailable()
    except Exception as error:  # a broken backend must not break the report
        return f"{type(error).__name__}: {error}"
