"""The native backend alone: every instruction set, dtype and odd size, on uninitialized memory that holds NaN."""

from __future__ import annotations

import itertools

import pytest
import torch

from slap_fast.ops.linear_cross_entropy import backend_native, linear_cross_entropy
from tests.ops._loss_checks import assert_as_accurate_as_plain, loss_and_gradients
from tests.ops._native import native_code, needs_native
from tests.oracles.linear_cross_entropy import linear_cross_entropy as oracle

pytestmark = needs_native

OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}]


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


def _inputs(tokens, vocabulary, width, dtype=torch.float32, logits=3.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator) * logits / width**0.5
    weight = torch.randn(vocabulary, width, generator=generator)
    target = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logits", [1.0, 30.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_error_is_at_most_twice_that_of_the_torch_backend(isa, dtype, logits, options):
    hidden, weight, target = _inputs(90, 101, 64, dtype, logits)
    with native_code(isa=isa):
        assert_as_accurate_as_plain(
            lambda *x: linear_cross_entropy(*x, target, backend="native", **options),
            lambda *x: linear_cross_entropy(*x, target, backend="torch", **options),
            (hidden, weight),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_sizes_and_ignored_tokens(isa, dtype):
    options = {"label_smoothing": 0.2, "z_loss": 0.1, "reduction": "sum"}
    sizes = itertools.product((1, 2, 65, 129), (1, 2, 15, 17, 32, 67), (1, 7))
    for tokens, vocabulary, width in sizes:
        hidden, weight, target = _inputs(tokens, vocabulary, width, dtype)
        target[1::3] = -100
        with native_code(isa=isa):
            assert_as_accurate_as_plain(
                lambda *x, t=target: linear_cross_entropy(*x, t, backend="native", **options),
                lambda *x, t=target: oracle(*x, t, **options),
                (hidden, weight),
            )


@pytest.mark.parametrize("tokens", [0, 3])
def test_loss_and_gradients_are_zero_if_no_token_counts(tokens):
    hidden, weight, target = _inputs(tokens, 7, 5)
    target[:] = -100
    loss = linear_cross_entropy(hidden, weight, target, z_loss=0.1, backend="native")
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_the_features_of_an_ignored_token_have_no_effect(garbage):
    hidden, weight, target = _inputs(11, 7, 5)
    target[2] = -100
    with torch.no_grad():
        hidden[2] = garbage
    loss, grad_hidden, grad_weight = loss_and_gradients(
        lambda *x: linear_cross_entropy(*x, target, z_loss=0.1, backend="native"), (hidden, weight)
    )
    assert loss.isfinite()
    assert grad_weight.isfinite().all()
    assert torch.equal(grad_hidden[2], torch.zeros(5))


def test_nan_features_of_a_counted_token_reach_the_loss():
    hidden, weight, target = _inputs(11, 40, 5)
    with torch.no_grad():
        hidden[2] = torch.nan
    assert linear_cross_entropy(hidden, weight, target, backend="native").isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strided_inputs(dtype):
    hidden, weight, target = _inputs(6, 6, 6, dtype)
    strided = hidden.T, weight[:, ::2].repeat(1, 2), target.repeat_interleave(2)[::2]
    plain = [x.detach().contiguous() for x in strided]
    settings = (-100, 0.1, 0.1, True, True, "native")
    actual = torch.ops.slap_fast.linear_cross_entropy(*strided, *settings)
    expected = torch.ops.slap_fast.linear_cross_entropy(*plain, *settings)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_target_outside_the_vocabulary_is_never_read_out_of_bounds():
    hidden, weight, target = _inputs(11, 7, 5)
    target[4] = 1 << 40
    settings = (-100, 0.0, 0.0, True, True, "native")
    total, grad_hidden, _ = torch.ops.slap_fast.linear_cross_entropy(hidden, weight, target, *settings)
    assert total.isnan()
    assert grad_hidden[4].isnan().all()
    assert grad_hidden[[0, 1, 2, 3, 5]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_any_number_of_threads(dtype):
    hidden, weight, target = _inputs(150, 999, 48, dtype)
    settings = (-100, 0.1, 0.1, True, True, "native")
    results = []
    for threads in (1, 2, 3, 2):
        with native_code(threads=threads):
            results.append(torch.ops.slap_fast.linear_cross_entropy(hidden, weight, target, *settings))
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)])
def test_a_gradient_that_is_not_needed_is_not_computed_and_changes_nothing(needs):
    hidden, weight, target = _inputs(70, 33, 8)
    settings = (target, -100, 0.1, 0.1)
    everything = torch.ops.slap_fast.linear_cross_entropy(hidden, weight, *settings, True, True, "native")
    total, *gradients = torch.ops.slap_fast.linear_cross_entropy(hidden, weight, *settings, *needs, "native")
    assert torch.equal(total, everything[0])
    for gradient, wanted, needed in zip(gradients, everything[1:], needs, strict=True):
        assert torch.equal(gradient, wanted) if needed else gradient.shape == (0,)


def test_opcheck():
    hidden, weight, target = _inputs(11, 7, 5)
    target[1] = -100
    settings = (target, -100, 0.1, 0.1, True, True, "native")
    torch.library.opcheck(torch.ops.slap_fast.linear_cross_entropy, (hidden, weight, *settings))


def test_float64_is_refused_by_name():
    hidden, weight, target = _inputs(3, 7, 5, torch.float64)
    with pytest.raises(ValueError, match="float64; native code takes float32"):
        linear_cross_entropy(hidden, weight, target, backend="native")
