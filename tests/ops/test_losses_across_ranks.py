"""Losses on several ranks equal those on one: the average of local gradients is the gradient of the global loss."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from tests.fork_server import fork_server
from tests.ops._distributed_workers import (
    CLIPS,
    LOSSES,
    STUDENT_TEMPERATURE,
    TEACHER_TEMPERATURE,
    TOKENS,
    Data,
    parameters,
    run_rank,
)
from tests.oracles.contrastive_loss import contrastive_loss
from tests.oracles.linear_cross_entropy import linear_cross_entropy
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy


def _reference(name, dtype, rounded_to=torch.float64):
    """Values and gradients of one process with the whole batch, in `dtype`, from inputs rounded to `rounded_to`."""
    weights = {key: x.detach().to(dtype).requires_grad_() for key, x in parameters(rounded_to).items()}
    data = Data(0, len(TOKENS), rounded_to).to(dtype)
    if name == "captioning":
        values = (linear_cross_entropy(data.dense[0], weights["vocabulary"], data.targets),)
    elif name.startswith("prototypes"):
        lengths = TOKENS if name == "prototypes by clip" else None
        loss = prototype_cross_entropy(
            *data.prototypes(weights),
            student_temperature=STUDENT_TEMPERATURE,
            teacher_temperature=TEACHER_TEMPERATURE,
            lengths=lengths,
        )
        values = (loss,)
    else:
        kind = "infonce" if name.startswith("infonce") else "sigmoid"
        scale, bias = weights["logit_scale"], weights["logit_bias"]
        ids = data.ids if "with ids" in name else None
        values = contrastive_loss(*data.embeddings(weights), scale, bias, kind=kind, ids=ids)
    values[0].backward()
    return values, {key: weight.grad for key, weight in weights.items() if weight.grad is not None}


@pytest.fixture(scope="module", params=CLIPS, ids=lambda size: f"{size}_ranks")
def ranks(request, tmp_path_factory):
    """`(clips, {(loss, dtype): (values, gradients)}, {exchange: rows held})` of each rank, from a single launch."""
    folder = tmp_path_factory.mktemp("ranks")
    fork_server()
    arguments = (request.param, str(folder))
    mp.start_processes(run_rank, arguments, nprocs=request.param, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(request.param)]


def _mean_over_ranks(ranks, key):
    values = [results[key][0] for _, results, _ in ranks]
    gradients = [results[key][1] for _, results, _ in ranks]
    # A gradient missing on one rank would make the all-reduces of the ranks mismatch.
    assert all(gradient.keys() == gradients[0].keys() for gradient in gradients)
    mean = {name: sum(gradient[name].double() for gradient in gradients) / len(ranks) for name in gradients[0]}
    return values, mean


@pytest.mark.parametrize("name", LOSSES)
def test_averaged_loss_and_gradients_equal_those_of_one_rank(ranks, name):
    values, gradients = _mean_over_ranks(ranks, (name, "float64"))
    expected, expected_gradients = _reference(name, torch.float64)
    torch.testing.assert_close(sum(value[0] for value in values) / len(ranks), expected[0])
    assert gradients.keys() == expected_gradients.keys()
    for parameter, wanted in expected_gradients.items():
        torch.testing.assert_close(gradients[parameter], wanted, msg=lambda text, key=parameter: f"{key}: {text}")


def test_a_rank_of_a_ring_holds_at_most_the_largest_block_of_one_rank(ranks):
    clips = [count for count, *_ in ranks]
    assert {held["ring"] for *_, held in ranks} == {max(clips)}
    assert min(held["gather"] for *_, held in ranks) >= sum(clips)


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith(("infonce", "sigmoid"))])
def test_metrics_weighted_by_clips_equal_those_of_one_rank(ranks, name):
    clips = torch.tensor([count for count, *_ in ranks], dtype=torch.float64)
    values = torch.stack([torch.stack(results[name, "float64"][0][1:]) for _, results, _ in ranks])
    expected, _ = _reference(name, torch.float64)
    torch.testing.assert_close((clips[:, None] * values).sum(0) / clips.sum(), torch.stack(expected[1:]))


@pytest.mark.parametrize("name", LOSSES)
def test_the_bfloat16_error_is_at_most_twice_that_of_one_rank(ranks, name):
    _, gradients = _mean_over_ranks(ranks, (name, "bfloat16"))
    _, plain = _reference(name, torch.bfloat16, rounded_to=torch.bfloat16)
    _, exact = _reference(name, torch.float64, rounded_to=torch.bfloat16)
    for parameter, wanted in exact.items():
        error, peer = ((x.double() - wanted).norm() for x in (gradients[parameter], plain[parameter]))
        assert error <= 2 * peer + torch.finfo(torch.bfloat16).eps * wanted.norm(), f"{parameter}: {error}, {peer}"
