from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast.ops.prototype_cross_entropy import (
    backend_torch,
    prototype_cross_entropy,
    prototype_usage,
    sinkhorn_potential,
)
from tests.ops._loss_checks import assert_as_accurate_as_plain, unit_rows
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as oracle

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}
LENGTHS = [3, 0, 1, 5, 4]


def _inputs(tokens=13, prototypes=6, width=4, dtype=torch.float64):
    shapes = [(tokens, width), (tokens, width), (prototypes, width), (prototypes, width)]
    return tuple(unit_rows(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))


def _offsets(lengths, dtype=torch.int32):
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of five tokens for six prototypes: they end inside clips, and the last one is shorter."""
    monkeypatch.setattr(backend_torch, "_MAX_SCORES", 5 * 6)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(
    "options",
    [
        {"sinkhorn_iterations": 1},
        {"sinkhorn_iterations": 3},
        {"sinkhorn_iterations": 10},
        {"centering": "softmax"},
        {"centering": "center", "center": torch.linspace(-0.4, 0.5, 6, dtype=torch.float64)},
    ],
)
def test_loss_and_gradients_equal_the_oracle(lengths, options):
    tensors = _inputs()
    cu_seqlens = None if lengths is None else _offsets(lengths)
    actual = prototype_cross_entropy(*tensors, cu_seqlens=cu_seqlens, **TEMPERATURES, **options)
    expected = oracle(*tensors, lengths=lengths, **TEMPERATURES, **options)
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected)
    students = tensors[0], tensors[2]
    torch.testing.assert_close(
        torch.autograd.grad(actual * 3, students, retain_graph=True), torch.autograd.grad(expected * 3, students)
    )
    teachers = tensors[1], tensors[3]
    assert torch.autograd.grad(actual, teachers, allow_unused=True) == (None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("teacher_temperature", [0.04, 0.07])
def test_error_is_at_most_twice_that_of_the_plain_loss_in_the_same_dtype(monkeypatch, dtype, teacher_temperature):
    monkeypatch.setattr(backend_torch, "_MAX_SCORES", 32 * 50)
    student, teacher, student_prototypes, teacher_prototypes = _inputs(100, 50, 32, dtype=dtype)
    lengths = [40, 25, 0, 35]
    temperatures = {"student_temperature": 0.1, "teacher_temperature": teacher_temperature}

    def actual(student, student_prototypes):
        return prototype_cross_entropy(
            student, teacher, student_prototypes, teacher_prototypes, cu_seqlens=_offsets(lengths), **temperatures
        )

    def plain(student, student_prototypes):
        teachers = (x.to(student.dtype) for x in (teacher, teacher_prototypes))
        features, prototypes = teachers
        return oracle(student, features, student_prototypes, prototypes, lengths=lengths, **temperatures)

    assert_as_accurate_as_plain(actual, plain, (student, student_prototypes))


@pytest.mark.usefixtures("small_chunks")
def test_micro_batches_with_the_potential_of_the_whole_batch_add_up_to_its_loss():
    tensors = _inputs()
    student, teacher, *prototypes = tensors
    expected = prototype_cross_entropy(*tensors, cu_seqlens=_offsets(LENGTHS), **TEMPERATURES)
    potential = sinkhorn_potential(teacher, prototypes[1], teacher_temperature=TEMPERATURES["teacher_temperature"])
    assert potential.shape == (6,)
    assert not potential.requires_grad
    total = 0.0
    for rows, lengths in ((slice(0, 4), LENGTHS[:3]), (slice(4, 13), LENGTHS[3:])):
        part = prototype_cross_entropy(
            student[rows],
            teacher[rows],
            *prototypes,
            cu_seqlens=_offsets(lengths),
            potential=potential,
            **TEMPERATURES,
        )
        total = total + part * len(lengths) / len(LENGTHS)
    torch.testing.assert_close(total, expected)
    students = tensors[0], tensors[2]
    torch.testing.assert_close(torch.autograd.grad(total, students), torch.autograd.grad(expected, students))


@pytest.mark.usefixtures("small_chunks")
def test_usage_is_the_mean_assignment_before_balancing():
    _, teacher, _, prototypes = _inputs()
    usage = prototype_usage(teacher, prototypes, teacher_temperature=0.05)
    torch.testing.assert_close(usage, (teacher @ prototypes.T / 0.05).softmax(1).mean(0))
    assert not usage.requires_grad
    assert torch.equal(prototype_usage(teacher[:0], prototypes, teacher_temperature=0.05), torch.zeros(6).double())
    native_or_torch = prototype_usage(teacher.float(), prototypes.float(), teacher_temperature=0.05)
    torch.testing.assert_close(native_or_torch.double(), usage, rtol=1e-5, atol=1e-7)


def test_a_teacher_temperature_that_overflows_exp_stays_finite():
    tensors = _inputs(dtype=torch.float32)
    loss = prototype_cross_entropy(*tensors, student_temperature=0.1, teacher_temperature=1e-3)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (tensors[0], tensors[2])))


def test_identical_tokens_are_spread_evenly_over_prototypes():
    student, teacher, student_prototypes, teacher_prototypes = _inputs()
    teacher = teacher[:1].detach().expand(13, 4)
    loss = prototype_cross_entropy(student, teacher, student_prototypes, teacher_prototypes, **TEMPERATURES)
    uniform = -(student @ student_prototypes.T / 0.1).log_softmax(1).mean(1).mean()
    torch.testing.assert_close(loss, uniform)


@pytest.mark.parametrize("tokens", [1, 0])
@pytest.mark.parametrize("centering", ["sinkhorn", "softmax"])
@pytest.mark.parametrize("packed", [False, True])
def test_one_token_and_no_token(tokens, centering, packed):
    tensors = _inputs(tokens)
    cu_seqlens = _offsets([tokens, 0], torch.int64) if packed else None
    loss = prototype_cross_entropy(*tensors, cu_seqlens=cu_seqlens, centering=centering, **TEMPERATURES)
    gradients = torch.autograd.grad(loss, (tensors[0], tensors[2]))
    if tokens == 0:
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients)
        return
    expected = oracle(*tensors, lengths=[1, 0] if packed else None, centering=centering, **TEMPERATURES)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (tensors[0], tensors[2])))


def test_strided_inputs():
    tensors = [x.detach().T.contiguous().T.requires_grad_() for x in _inputs()]
    torch.testing.assert_close(prototype_cross_entropy(*tensors, **TEMPERATURES), oracle(*tensors, **TEMPERATURES))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradcheck(lengths):
    student, teacher, student_prototypes, teacher_prototypes = _inputs()
    cu_seqlens = None if lengths is None else _offsets(lengths)

    def loss(student, student_prototypes):
        return prototype_cross_entropy(
            student, teacher, student_prototypes, teacher_prototypes, cu_seqlens=cu_seqlens, **TEMPERATURES
        )

    assert torch.autograd.gradcheck(loss, (student, student_prototypes))


@pytest.mark.parametrize("with_potential", [False, True])
def test_opcheck(with_potential):
    student, teacher, student_prototypes, teacher_prototypes = _inputs(dtype=torch.float32)
    teacher, teacher_prototypes = teacher.detach(), teacher_prototypes.detach()
    potential = torch.linspace(-1, 1, 6) if with_potential else None
    temperatures = torch.tensor(0.1), torch.tensor(0.05)
    torch.library.opcheck(
        torch.ops.slap_fast.sinkhorn_sweep, (teacher, teacher_prototypes, temperatures[1], potential, "torch")
    )
    torch.library.opcheck(
        torch.ops.slap_fast.prototype_cross_entropy,
        (
            student,
            teacher,
            student_prototypes,
            teacher_prototypes,
            potential,
            torch.full((13,), 1 / 13),
            *temperatures,
            True,
            True,
            None,
            "torch",
        ),
    )


def test_the_backward_can_run_twice_and_skips_inputs_without_a_gradient():
    student, teacher, student_prototypes, teacher_prototypes = _inputs()
    loss = prototype_cross_entropy(student, teacher, student_prototypes, teacher_prototypes, **TEMPERATURES)
    first = torch.autograd.grad(loss, (student, student_prototypes), retain_graph=True)
    again = torch.autograd.grad(loss, (student, student_prototypes))
    assert all(torch.equal(*gradients) for gradients in zip(first, again, strict=True))
    frozen = student_prototypes.detach()
    loss = prototype_cross_entropy(student, teacher, frozen, teacher_prototypes, **TEMPERATURES)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], first[0])
    with torch.no_grad():
        loss = prototype_cross_entropy(student, teacher, frozen, teacher_prototypes, **TEMPERATURES)
    assert not loss.requires_grad


def test_compiles_as_one_graph_and_once_more_for_changing_lengths_and_temperatures():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def eager(tensors, cu_seqlens, teacher_temperature):
        return prototype_cross_entropy(
            *tensors, cu_seqlens=cu_seqlens, student_temperature=0.1, teacher_temperature=teacher_temperature
        )

    compiled = torch.compile(eager, fullgraph=True, backend=counter)
    for step, tokens in enumerate((6, 9, 4, 30)):
        tensors, cu_seqlens = _inputs(tokens, dtype=torch.float32), _offsets([2, tokens - 2])
        actual = compiled(tensors, cu_seqlens, 0.04 + 0.001 * step)
        expected = eager(tensors, cu_seqlens, 0.04 + 0.001 * step)
        torch.testing.assert_close(actual, expected)
        students = tensors[0], tensors[2]
        torch.testing.assert_close(torch.autograd.grad(actual, students), torch.autograd.grad(expected, students))
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": torch.zeros(12, 4)}, r"\(12, 4\)"),
        ({"teacher_prototypes": torch.zeros(5, 4)}, r"\(5, 4\)"),
        ({"student_prototypes": torch.zeros(6, 3), "teacher_prototypes": torch.zeros(6, 3)}, r"\[K, 4\]"),
        ({"teacher": torch.zeros(13, 4, dtype=torch.float64)}, "float64"),
        ({"teacher": torch.zeros(13, 4, device="meta")}, "meta"),
        ({"student_temperature": 0.0}, "student_temperature is 0.0"),
        ({"teacher_temperature": float("nan")}, "teacher_temperature is nan"),
        ({"cu_seqlens": torch.tensor([0, 12])}, "from 0 to 12; it must run from 0 to the 13 tokens"),
        ({"cu_seqlens": torch.tensor([0, 14, 13])}, "falls from 14 to 13 at item 1"),
        ({"cu_seqlens": torch.tensor([0.0, 13.0])}, "float32"),
        ({"centering": "mean"}, "'mean'"),
        ({"centering": "center"}, "center absent"),
        ({"center": torch.zeros(6)}, "'sinkhorn' with center given"),
        ({"centering": "center", "center": torch.zeros(5)}, r"\(5,\)"),
        ({"potential": torch.zeros(5)}, r"potential has shape \(5,\)"),
        ({"centering": "softmax", "potential": torch.zeros(6)}, "'softmax' with potential given"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations is 0"),
        ({"backend": "triton"}, "'triton'"),
    ],
)
def test_invalid_arguments_raise_and_name_the_value(change, message):
    names = ("student", "teacher", "student_prototypes", "teacher_prototypes")
    arguments = dict(zip(names, _inputs(dtype=torch.float32), strict=True)) | TEMPERATURES | change
    with pytest.raises(ValueError, match=message):
        prototype_cross_entropy(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": torch.zeros(13)}, r"\(13,\), \(6, 4\)"),
        ({"teacher_prototypes": torch.zeros(6, 3)}, r"\(13, 4\), \(6, 3\)"),
        ({"teacher_prototypes": torch.zeros(0, 4)}, r"\(0, 4\)"),
        ({"teacher": torch.zeros(13, 4, dtype=torch.float64)}, "float64"),
        ({"teacher": torch.zeros(13, 4, device="meta")}, "meta"),
        ({"teacher_temperature": 0.0}, "teacher_temperature is 0.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"backend": "triton"}, "'triton'"),
    ],
)
def test_invalid_arguments_of_the_potential_raise_and_name_the_value(change, message):
    _, teacher, _, prototypes = _inputs(dtype=torch.float32)
    arguments = {"teacher": teacher, "teacher_prototypes": prototypes, "teacher_temperature": 0.05} | change
    with pytest.raises(ValueError, match=message):
        sinkhorn_potential(**arguments)
