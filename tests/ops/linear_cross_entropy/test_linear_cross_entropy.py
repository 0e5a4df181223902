from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast.ops.linear_cross_entropy import backend_torch, linear_cross_entropy
from tests.ops._loss_checks import assert_as_accurate_as_plain, loss_and_gradients
from tests.oracles.linear_cross_entropy import linear_cross_entropy as oracle

OPTIONS = [
    {},
    {"reduction": "sum"},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"label_smoothing": 0.2, "z_loss": 0.1, "ignore_index": 3},
]


def _inputs(tokens=11, vocabulary=7, width=5, dtype=torch.float64, logits=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * logits / width**0.5
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    target = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of four tokens for a vocabulary of seven: the last one is shorter."""
    monkeypatch.setattr(backend_torch, "_MAX_LOGITS", 4 * 7)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("ignored", [[], [0, 4, 10]])
def test_loss_and_gradients_equal_the_oracle(options, ignored):
    hidden, weight, target = _inputs()
    target[ignored] = options.get("ignore_index", -100)
    actual = linear_cross_entropy(hidden, weight, target, **options)
    expected = oracle(hidden, weight, target, **options)
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual * 3, (hidden, weight)), torch.autograd.grad(expected * 3, (hidden, weight))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logits", [1.0, 30.0])
@pytest.mark.parametrize("options", OPTIONS[:4])
def test_error_is_at_most_twice_that_of_the_plain_loss_in_the_same_dtype(monkeypatch, dtype, logits, options):
    monkeypatch.setattr(backend_torch, "_MAX_LOGITS", 32 * 101)
    hidden, weight, target = _inputs(90, 101, 64, dtype=dtype, logits=logits)
    assert linear_cross_entropy(hidden, weight, target).dtype == torch.float32
    assert_as_accurate_as_plain(
        lambda *x: linear_cross_entropy(*x, target, **options),
        lambda *x: oracle(*x, target, **options),
        (hidden, weight),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tokens", [0, 3])
def test_loss_and_gradients_are_zero_if_no_token_counts(reduction, tokens):
    hidden, weight, target = _inputs(tokens)
    target[:] = -100
    loss = linear_cross_entropy(hidden, weight, target, z_loss=0.1, label_smoothing=0.1, reduction=reduction)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_the_features_of_an_ignored_token_have_no_effect(garbage):
    hidden, weight, target = _inputs()
    target[2] = -100
    with torch.no_grad():
        hidden[2] = garbage
    loss, grad_hidden, grad_weight = loss_and_gradients(
        lambda *x: linear_cross_entropy(*x, target, z_loss=0.1), (hidden, weight)
    )
    assert loss.isfinite()
    assert grad_weight.isfinite().all()
    assert torch.equal(grad_hidden[2], torch.zeros(5, dtype=torch.float64))


def test_strided_inputs():
    hidden, weight, target = _inputs(6, 6, 6)
    actual = linear_cross_entropy(hidden.T, weight[:, ::2].repeat(1, 2), target[::1])
    expected = oracle(hidden.T, weight[:, ::2].repeat(1, 2), target)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    hidden, weight, target = _inputs()
    target[1] = options.get("ignore_index", -100)
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, target, **options), (hidden, weight))


def test_opcheck():
    hidden, weight, target = _inputs(dtype=torch.float32)
    target[1] = -100
    settings = (target, -100, 0.1, 0.1, True, True, "torch")
    torch.library.opcheck(torch.ops.slap_fast.linear_cross_entropy, (hidden, weight, *settings))


def test_the_backward_can_run_twice_and_scales_the_incoming_gradient():
    hidden, weight, target = _inputs()
    loss = linear_cross_entropy(hidden, weight, target)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    tripled = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close([gradient / 3 for gradient in tripled], list(first))
    again = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.equal(*gradients) for gradients in zip(first, again, strict=True))


def test_only_needed_gradients_are_computed():
    hidden, weight, target = _inputs()
    both = torch.autograd.grad(linear_cross_entropy(hidden, weight, target), (hidden, weight))
    only_hidden = linear_cross_entropy(hidden, weight.detach(), target)
    only_weight = linear_cross_entropy(hidden.detach(), weight, target)
    torch.testing.assert_close(torch.autograd.grad(only_hidden, hidden)[0], both[0])
    torch.testing.assert_close(torch.autograd.grad(only_weight, weight)[0], both[1])
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, target).requires_grad
    settings = (target, -100, 0.0, 0.0, False, False, "torch")
    _, *unasked = torch.ops.slap_fast.linear_cross_entropy(hidden, weight, *settings)
    assert [gradient.shape for gradient in unasked] == [(0,), (0,)]


def test_a_loss_scale_rescues_float16_gradients_from_underflow():
    """The incoming gradient is scale / tokens: gradients rounded to float16 before that product would be 0."""
    hidden, weight, target = _inputs(dtype=torch.float16)
    with torch.no_grad():
        weight *= 1e-4
        hidden *= 1e-4
    tiny = torch.autograd.grad(linear_cross_entropy(hidden, weight, target) * 2.0**12, hidden)[0]
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = torch.autograd.grad(linear_cross_entropy(*exact, target) * 2.0**12, exact[0])[0]
    torch.testing.assert_close(tiny.double(), expected, rtol=2e-3, atol=0)


def test_compiles_as_one_graph_and_once_more_for_changing_lengths():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def loss(hidden, weight, target):
        return linear_cross_entropy(hidden, weight, target, label_smoothing=0.1) * 2

    for tokens in (6, 9, 4, 30):
        hidden, weight, target = _inputs(tokens, dtype=torch.float32)
        actual = loss(hidden, weight, target)
        expected = 2 * linear_cross_entropy(hidden, weight, target, label_smoothing=0.1)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
        )
    assert counter.frame_count == 2


def test_a_target_outside_the_vocabulary_is_never_read_out_of_bounds():
    """As on a GPU, where targets are not read back: the loss is NaN, which the trainer's finite check reports."""
    hidden, weight, target = _inputs()
    target[4] = 1 << 40
    settings = (target, -100, 0.0, 0.0, True, True, "torch")
    total, _, _ = torch.ops.slap_fast.linear_cross_entropy(hidden, weight, *settings)
    assert total.isnan()
    assert torch.autograd.grad(total, hidden)[0][4].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 7, 1])}, r"target\[1\] is 7"),
        ({"target": torch.tensor([0, -1, 1])}, r"target\[1\] is -1"),
        ({"target": torch.tensor([0, 1])}, r"target is torch.int64 of shape \(2,\)"),
        ({"target": torch.tensor([0, 1, 2], dtype=torch.int32)}, "target is torch.int32"),
        ({"target": torch.zeros(3, dtype=torch.int64, device="meta")}, "meta"),
        ({"weight": torch.zeros(7, 4)}, r"\(7, 4\)"),
        ({"weight": torch.zeros(0, 5)}, r"\(0, 5\)"),
        ({"weight": torch.zeros(7, 5, dtype=torch.float64)}, "float64"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ({"z_loss": float("nan")}, "z_loss is nan"),
        ({"reduction": "none"}, "'none'"),
        ({"backend": "triton"}, "'triton'"),
    ],
)
def test_invalid_arguments_raise_and_name_the_value(change, message):
    arguments = {"hidden": torch.zeros(3, 5), "weight": torch.zeros(7, 5), "target": torch.tensor([0, 1, 2])} | change
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)
