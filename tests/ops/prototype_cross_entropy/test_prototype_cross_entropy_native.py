"""The native backend alone: every instruction set, dtype and odd size, on uninitialized memory that holds NaN."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from slap_fast.ops.prototype_cross_entropy import backend_native, backend_torch, prototype_cross_entropy
from tests.ops._loss_checks import assert_as_accurate_as_plain, loss_and_gradients, unit_rows
from tests.ops._native import native_code, needs_native
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as oracle

pytestmark = needs_native

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}


@pytest.fixture(autouse=True)
def poisoned_chunks(monkeypatch):
    """Chunks of at most 64 tokens in memory full of NaN: a read before the first write shows in the results."""
    empty_scores = backend_native.empty_scores

    def poisoned(*arguments):
        scores = empty_scores(*arguments)
        scores.as_strided((scores.shape[0], scores.stride(0)), scores.stride()).fill_(torch.nan)
        return scores

    monkeypatch.setattr(backend_native, "_BUDGET", 1)
    monkeypatch.setattr(backend_native, "empty_scores", poisoned)


def _inputs(tokens, prototypes, width, dtype=torch.float32):
    shapes = [(tokens, width), (tokens, width), (prototypes, width), (prototypes, width)]
    return tuple(unit_rows(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher_temperature", [0.04, 0.07])
def test_error_is_at_most_twice_that_of_the_torch_backend(isa, dtype, teacher_temperature):
    student, teacher, student_prototypes, teacher_prototypes = _inputs(100, 50, 32, dtype)
    temperatures = {"student_temperature": 0.1, "teacher_temperature": teacher_temperature}
    cu_seqlens = torch.tensor([0, 40, 65, 65, 100])

    def loss(student, student_prototypes, backend):
        teachers = (x.to(student.dtype) for x in (teacher, teacher_prototypes))
        tensors = student, next(teachers), student_prototypes, next(teachers)
        return prototype_cross_entropy(*tensors, cu_seqlens=cu_seqlens, backend=backend, **temperatures)

    native, plain = (functools.partial(loss, backend=name) for name in ("native", "torch"))
    with native_code(isa=isa):
        assert_as_accurate_as_plain(native, plain, (student, student_prototypes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_sizes_and_every_centering(isa, dtype):
    centerings = itertools.cycle(["sinkhorn", "center", "softmax"])
    for tokens, prototypes, width in itertools.product((1, 2, 65, 129), (1, 2, 15, 17, 32, 67), (1, 7)):
        tensors = _inputs(tokens, prototypes, width, dtype)
        centering = next(centerings)
        center = torch.linspace(-0.4, 0.5, prototypes) if centering == "center" else None
        options = TEMPERATURES | {"centering": centering, "center": center}
        with native_code(isa=isa):
            assert_as_accurate_as_plain(
                lambda s, p, x=tensors, o=options: prototype_cross_entropy(s, x[1], p, x[3], backend="native", **o),
                lambda s, p, x=tensors, o=options: oracle(s, x[1].to(s.dtype), p, x[3].to(s.dtype), **o),
                tensors[::2],
            )


@pytest.mark.parametrize("temperature", [1e-3, 0.04, 1.0])
def test_the_potential_after_three_sinkhorn_rounds_equals_that_of_float64(isa, temperature):
    """At the lowest temperature `exp` of most scores overflows, and whole columns of targets would underflow to 0."""
    _, teacher, _, prototypes = (x.detach() for x in _inputs(150, 77, 5))
    potential, exact = None, None
    for _ in range(3):
        with native_code(isa=isa):
            potential = backend_native.sinkhorn_sweep(teacher, prototypes, torch.tensor(temperature), potential)
        exact = backend_torch.sinkhorn_sweep(
            teacher.double(), prototypes.double(), torch.tensor(temperature).double(), exact
        )
        assert potential.isfinite().all()
        torch.testing.assert_close(potential.double(), exact, rtol=0, atol=2e-6 + 1e-6 / temperature)


def test_a_sharp_teacher_stays_finite():
    tensors = _inputs(40, 19, 4)
    loss = prototype_cross_entropy(*tensors, student_temperature=0.01, teacher_temperature=1e-3, backend="native")
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, tensors[::2]))


def test_without_tokens_loss_and_gradients_are_zero_and_the_potential_is_minus_infinity():
    tensors = _inputs(0, 6, 4)
    loss = prototype_cross_entropy(*tensors, backend="native", **TEMPERATURES)
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, tensors[::2]))
    for potential in (None, torch.zeros(6)):
        mass = backend_native.sinkhorn_sweep(tensors[1].detach(), tensors[3].detach(), torch.tensor(0.1), potential)
        assert mass.isneginf().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strided_inputs(dtype):
    tensors = [x.detach() for x in _inputs(6, 6, 6, dtype)]
    strided = [x.T.contiguous().T if i % 2 else x.repeat_interleave(2, 1)[:, ::2] for i, x in enumerate(tensors)]
    actual, expected = (
        loss_and_gradients(lambda s, p, x=x: prototype_cross_entropy(s, x[1], p, x[3], **TEMPERATURES), x[::2])
        for x in (strided, tensors)
    )
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_any_number_of_threads(dtype):
    tensors = [x.detach() for x in _inputs(150, 999, 48, dtype)]
    results = []
    for threads in (1, 2, 3, 2):
        with native_code(threads=threads):
            results.append(
                loss_and_gradients(
                    lambda s, p: prototype_cross_entropy(
                        s, tensors[1], p, tensors[3], backend="native", **TEMPERATURES
                    ),
                    tensors[::2],
                )
            )
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)])
def test_a_gradient_that_is_not_needed_is_not_computed_and_changes_nothing(needs):
    tensors = [x.detach() for x in _inputs(70, 33, 8)]
    settings = (torch.linspace(-1, 1, 33), torch.full((70,), 1 / 70), torch.tensor(0.1), torch.tensor(0.05))
    everything = torch.ops.slap_fast.prototype_cross_entropy(*tensors, *settings, True, True, None, "native")
    total, *gradients = torch.ops.slap_fast.prototype_cross_entropy(*tensors, *settings, *needs, None, "native")
    assert torch.equal(total, everything[0])
    for gradient, wanted, needed in zip(gradients, everything[1:], needs, strict=True):
        assert torch.equal(gradient, wanted) if needed else gradient.shape == (0,)


def test_opcheck():
    student, teacher, student_prototypes, teacher_prototypes = _inputs(13, 6, 4)
    tensors = student, teacher.detach(), student_prototypes, teacher_prototypes.detach()
    temperatures, potential = (torch.tensor(0.1), torch.tensor(0.05)), torch.linspace(-1, 1, 6)
    torch.library.opcheck(
        torch.ops.slap_fast.sinkhorn_sweep, (tensors[1], tensors[3], temperatures[1], potential, "native")
    )
    torch.library.opcheck(
        torch.ops.slap_fast.prototype_cross_entropy,
        (*tensors, potential, torch.full((13,), 1 / 13), *temperatures, True, True, None, "native"),
    )


def test_float64_is_rejected_with_the_dtypes_that_are_served():
    with pytest.raises(ValueError, match="float64; native code takes float32"):
        prototype_cross_entropy(*_inputs(3, 6, 4, torch.float64), backend="native", **TEMPERATURES)
