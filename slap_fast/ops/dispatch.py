"""Which backend serves an op: one table per op, asked at every call and printed by `slap-fast info`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from slap_fast.errors import SlapFastError


class CannotServeError(SlapFastError, ValueError):
    """The backend that was asked for cannot serve a call that is valid; with "auto", none can."""


def _available() -> str | None:
    return None


def _accepts(**_traits: object) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: what users pass as `backend=`.
        unavailable: why it cannot serve on this machine at all, None if it can; asked once per process.
        rejects: given the call's traits by keyword (device, dtype, ...), why it cannot serve this call, None if it can.
            Runs at every call and under `torch.compile`: plain comparisons only.
    """

    name: str
    unavailable: Callable[[], str | None] = _available
    rejects: Callable[..., str | None] = _accepts


@dataclass(frozen=True)
class Preference:
    """Which backends `backend="auto"` tries first.

    Attributes:
        order: given the call's traits by keyword, names of backends, the fastest first; those that it leaves out follow
            in the order of registration. Runs at every call and under `torch.compile`, as `Backend.rejects` does.
        describe: what `slap-fast info` says of it.
    """

    order: Callable[..., Sequence[str]]
    describe: Callable[[], str]


_backends: dict[str, tuple[Backend, ...]] = {}
_preferences: dict[str, Preference] = {}
_reasons: dict[str, tuple[str | None, ...]] = {}


def register(op: str, backends: Sequence[Backend], preference: Preference | None = None) -> None:
    """Set the backends of `op`, in order where `preference` knows no better; a second call replaces the first.

    Raises:
        ValueError: no backend, or two of one name, or one named "auto".
    """
    names = [backend.name for backend in backends]
    if not names or len(set(names)) < len(names) or "auto" in names:
        raise ValueError(f"{op}: the backends {names} must be at least one, of distinct names, none of them 'auto'")
    _backends[op] = tuple(backends)
    _reasons.pop(op, None)
    _preferences.pop(op, None)
    if preference is not None:
        _preferences[op] = preference


def _unavailable(op: str) -> tuple[str | None, ...]:
    """Why each backend of `op` cannot serve here."""
    if op not in _reasons:
        _reasons[op] = tuple(backend.unavailable() for backend in _backends[op])
    return _reasons[op]


# The compiler cannot trace the probes, and takes their answer for a constant. This is all that
# torch.compiler.assume_constant_result does, but for its import of the whole compiler, which takes seconds.
_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def select(op: str, requested: str, **traits: object) -> str:
    """Name the backend that serves a call of `op` with `traits`.

    An exported program may run elsewhere: while `torch.export` traces, "auto" stays "auto", and the registered op asks
    again where it runs.

    Args:
        op: a registered op.
        requested: a backend's name, or "auto" for the first that serves, the fastest by measurement first.

    Raises:
        ValueError: unknown op or backend.
        CannotServeError: the one asked for, or with "auto" any, cannot serve; says why.
    """
    if op not in _backends:
        raise ValueError(f"unknown op {op!r}; registered: {', '.join(sorted(_backends)) or 'none'}")
    if requested == "auto" and torch.compiler.is_exporting():
        return "auto"
    backends = _backends[op]
    candidates: Iterable[tuple[Backend, str | None]] = zip(backends, _unavailable(op), strict=True)
    if requested == "auto" and op in _preferences:
        candidates = list(candidates)
        first = _preferences[op].order(**traits)
        candidates = [
            *(candidate for name in first for candidate in candidates if candidate[0].name == name),
            *(candidate for candidate in candidates if candidate[0].name not in first),
        ]
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
    """Inside the block `backend="auto"` tries the named backend of each named op first. For benchmarks and tests.

        with dispatch.preferring(rms_norm="torch", swiglu="torch"):
            loss = model(batch)

    It holds for the whole process. A backward takes the backend that its forward took.

    Raises:
        ValueError: an unknown op or backend.
    """
    for op, name in backends.items():
        if name not in [backend.name for backend in _backends.get(op, ())]:
            raise ValueError(f"{op!r} has no backend {name!r}; `slap-fast info` lists the backends of each op")
    before = dict(_preferences)
    for op, name in backends.items():
        _preferences[op] = _preference_for(name)
    try:
        yield
    finally:
        _preferences.clear()
        _preferences.update(before)


def _preference_for(name: str) -> Preference:
    def order(**_traits: object) -> tuple[str, ...]:
        return (name,)

    return Preference(order, lambda: f"{name} first")


def report() -> dict[str, list[tuple[str, str | None]]]:
    """For every registered op its backends in order of preference, each with why it cannot serve here or None."""
    return {op: [(backend.name, _probe(backend)) for backend in backends] for op, backends in sorted(_backends.items())}


def notes() -> dict[str, str]:
    """What is known of the order of an op's backends, for ops where it depends on the call."""
    return {op: _preferences[op].describe() for op in sorted(_backends) if op in _preferences}


def _probe(backend: Backend) -> str | None:
    try:
        return backend.unavailable()
    except Exception as error:  # a report of what is broken must not break
        return f"{type(error).__name__}: {error}"
