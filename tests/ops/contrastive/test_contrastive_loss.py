from __future__ import annotations

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast.ops.contrastive import contrastive_loss
from tests.ops._loss_checks import assert_as_accurate_as_plain, loss_and_gradients, unit_rows
from tests.oracles.contrastive_loss import contrastive_loss as oracle
from tests.tolerance import assert_as_exact_as

KINDS = ["infonce", "sigmoid"]
DUPLICATES = [0, 1, 2, 1, 4, 0, 0, 7, 8]


def _inputs(clips=9, width=16, scale=10.0, dtype=torch.float64, scale_shape=(1,)):
    audio = unit_rows(clips, width, seed=clips, dtype=dtype)
    # Texts similar to their clips, as in a trained model: some queries are right, some wrong.
    text = unit_rows(clips, width, seed=clips + 1).detach() + 0.7 * audio.detach().double()
    text = torch.nn.functional.normalize(text, dim=-1).to(dtype).requires_grad_()
    scalar_dtype = torch.promote_types(dtype, torch.float32)
    return (
        audio,
        text,
        torch.full(scale_shape, scale, dtype=scalar_dtype, requires_grad=True),
        torch.full(scale_shape, -scale / 2, dtype=scalar_dtype, requires_grad=True),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [None, DUPLICATES, [5] * 9], ids=["own", "duplicates", "all_equal"])
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 9, 100])
def test_loss_metrics_and_gradients_equal_the_oracle(kind, ids, chunk_size):
    tensors = _inputs()
    ids = None if ids is None else torch.tensor(ids)
    actual = contrastive_loss(*tensors, kind=kind, ids=ids, chunk_size=chunk_size)
    expected = oracle(*tensors, kind=kind, ids=ids)
    torch.testing.assert_close(tuple(actual), tuple(expected))
    assert actual.loss.shape == ()
    assert not any(metric.requires_grad for metric in actual[1:])
    torch.testing.assert_close(
        torch.autograd.grad(actual.loss, tensors), torch.autograd.grad(expected.loss, tensors, materialize_grads=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("duplicates", [False, True])
def test_error_is_at_most_twice_that_of_the_plain_loss_in_the_same_dtype(kind, scale, dtype, duplicates):
    clips = 70
    ids = torch.arange(clips) % 60 if duplicates else None
    tensors = [x.detach() for x in _inputs(clips, width=48, scale=scale, dtype=dtype)]

    def plain(audio, text, logit_scale, logit_bias):
        logit_scale, logit_bias = logit_scale.to(audio.dtype), logit_bias.to(audio.dtype)
        return oracle(audio, text, logit_scale, logit_bias, kind=kind, ids=ids).loss

    assert_as_accurate_as_plain(lambda *x: contrastive_loss(*x, kind=kind, ids=ids, chunk_size=32).loss, plain, tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_rows_at_scale_100_are_finite_and_count_as_wrong(kind, dtype):
    audio = unit_rows(1, 16, seed=0, dtype=dtype).detach().expand(12, 16)
    scale, bias = torch.tensor(100.0), torch.tensor(0.0)
    output = contrastive_loss(audio, audio, scale, bias, kind=kind)
    assert output.accuracy == 0
    tensors = [audio, audio, scale, bias]

    def plain(audio, text, logit_scale, logit_bias):
        return oracle(audio, text, logit_scale.to(audio.dtype), logit_bias.to(audio.dtype), kind=kind).loss

    ours = loss_and_gradients(lambda *x: contrastive_loss(*x, kind=kind).loss, tensors)
    exact = loss_and_gradients(plain, [x.double() for x in tensors])
    peers = loss_and_gradients(plain, tensors)
    peers[0] = peers[0].float()
    # The gradients cancel: the error is the rounding of logits of 100.
    assert_as_exact_as(ours, peers, exact, ("loss", "audio", "text", "scale", "bias"), size=100.0)
    if kind == "infonce":
        assert float(exact[0]) == pytest.approx(math.log(12))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_clip(kind):
    tensors = _inputs(1)
    actual, expected = contrastive_loss(*tensors, kind=kind), oracle(*tensors, kind=kind)
    torch.testing.assert_close(tuple(actual), tuple(expected))
    assert actual.accuracy == 1
    assert actual.negative_similarity == 0
    torch.testing.assert_close(
        torch.autograd.grad(actual.loss, tensors), torch.autograd.grad(expected.loss, tensors, materialize_grads=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [None, torch.zeros(0, dtype=torch.int64)])
def test_loss_and_gradients_are_zero_without_clips(kind, ids):
    tensors = _inputs(0)
    output = contrastive_loss(*tensors, kind=kind, ids=ids)
    assert tuple(output) == (0, 0, 0, 0)
    for gradient, tensor in zip(torch.autograd.grad(output.loss, tensors), tensors, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_and_zero_dimensional_scalars(kind):
    audio, text, scale, bias = _inputs(scale_shape=())
    wide = torch.stack([audio, text], dim=-1).detach().requires_grad_()
    actual = contrastive_loss(*wide.unbind(-1), scale, bias, kind=kind).loss
    expected = oracle(audio, text, scale, bias, kind=kind).loss
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(actual, (wide, scale))
    wanted = torch.autograd.grad(expected, (audio, text, scale))
    torch.testing.assert_close(gradients[0].unbind(-1), wanted[:2])
    torch.testing.assert_close(gradients[1], wanted[2])


def test_infonce_ignores_a_bias_and_the_sigmoid_works_without_one():
    audio, text, scale, bias = _inputs()
    with_bias = contrastive_loss(audio, text, scale, bias).loss
    assert torch.equal(with_bias, contrastive_loss(audio, text, scale).loss)
    assert torch.equal(torch.autograd.grad(with_bias, bias)[0], torch.zeros_like(bias))
    torch.testing.assert_close(
        contrastive_loss(audio, text, scale, kind="sigmoid").loss, oracle(audio, text, scale, kind="sigmoid").loss
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [None, [3, 1, 3, 3, 0]])
def test_gradcheck(kind, ids):
    ids = None if ids is None else torch.tensor(ids)
    assert torch.autograd.gradcheck(
        lambda *x: contrastive_loss(*x, kind=kind, ids=ids, chunk_size=2).loss, _inputs(5, width=3, scale=4.0)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_ids", [False, True])
def test_opcheck(kind, with_ids):
    audio, text, scale, bias = _inputs(6, width=4, dtype=torch.float32)
    ids = torch.tensor([0, 1, 2, 0, 4, 5]) if with_ids else None
    row_ids = None if ids is None else ids[1:4]
    bias_or_none = bias if kind == "sigmoid" else None
    rows = audio[1:4].detach().requires_grad_()
    torch.library.opcheck(
        torch.ops.slap_fast.contrastive_sums,
        (rows, text, scale, bias_or_none, row_ids, ids, 1, kind, 2, "torch"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph_and_once_more_for_changing_batches(kind):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def loss(audio, text, scale, bias, ids):
        return contrastive_loss(audio, text, scale, bias, kind=kind, ids=ids).loss * 2

    for clips in (6, 9, 4, 30):
        tensors = _inputs(clips, dtype=torch.float32)
        ids = torch.arange(clips) % (clips - 1)
        actual, expected = loss(*tensors, ids), 2 * contrastive_loss(*tensors, kind=kind, ids=ids).loss
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, tensors), torch.autograd.grad(expected, tensors))
    assert counter.frame_count == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_from_run_to_run(kind):
    tensors = [x.detach() for x in _inputs(200, width=64, dtype=torch.float32)]
    runs = [loss_and_gradients(lambda *x: contrastive_loss(*x, kind=kind).loss, tensors) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "softmax"}, "'softmax'"),
        ({"text": torch.zeros(4, 3)}, r"\(4, 3\)"),
        ({"text": torch.zeros(5, 3, dtype=torch.float64)}, "float64"),
        ({"audio": torch.zeros(5, 3, dtype=torch.int64), "text": torch.zeros(5, 3, dtype=torch.int64)}, "int64"),
        ({"text": torch.zeros(5, 3, device="meta")}, "meta"),
        ({"logit_scale": torch.ones(2)}, r"logit_scale is tensor\(\[1., 1.\]\)"),
        ({"logit_scale": 10.0}, "logit_scale is 10.0"),
        ({"logit_bias": torch.ones(1, dtype=torch.int64)}, "logit_bias is tensor"),
        ({"ids": torch.zeros(4, dtype=torch.int64)}, r"ids is torch.int64 of shape \(4,\)"),
        ({"ids": torch.zeros(5)}, "ids is torch.float32"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"exchange": "star"}, "exchange is 'star'"),
        ({"backend": "triton"}, "'triton'"),
    ],
)
def test_invalid_arguments_raise_and_name_the_value(change, message):
    arguments = {"audio": torch.zeros(5, 3), "text": torch.zeros(5, 3), "logit_scale": torch.ones(1)} | change
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**arguments)
