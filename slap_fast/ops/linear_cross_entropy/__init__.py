"""Cross-entropy of a vocabulary projection, without its logits: what a caption decoder ends in.

The `[T, V]` logits exist one chunk of tokens at a time, and gradients, where needed, are made from them on the spot:
three products in all. Definitions: PyTorch's `cross_entropy` for `ignore_index` and `label_smoothing`; PaLM
(arXiv 2204.02311, section 5) for the z-loss.
"""

from __future__ import annotations

from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.accumulator import accumulator
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.linear_cross_entropy import (
    backend_native as linear_cross_entropy_native,
)
from slap_fast.ops.linear_cross_entropy import (
    backend_torch as linear_cross_entropy_torch,
)
from slap_fast.ops.linear_cross_entropy import (
    backend_triton as linear_cross_entropy_triton,
)
from slap_fast.ops.linear_cross_entropy.call import LinearCrossEntropyBackend
from slap_fast.ops.linear_cross_entropy.validation import validate
from slap_fast.ops.loss_gradients import empty_gradient, needs_grad, register_autograd

# In the order of preference. PyTorch's own chunked `linear_cross_entropy` (2.13) is not among them: it has no label
# smoothing and no z-loss, and on a CPU, for 2,048 tokens of 512 floats and a vocabulary of 50,368, it took 8.1 times as
# long as `cross_entropy` of all logits with its own choice of chunks, and 1.7 times with chunks of 512 tokens.
BACKENDS: dict[str, LinearCrossEntropyBackend] = {
    "native": linear_cross_entropy_native,
    "triton": linear_cross_entropy_triton,
    "torch": linear_cross_entropy_torch,
}
dispatch.register(
    "linear_cross_entropy",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


def _select(hidden: Tensor, weight: Tensor, backend: str) -> str:
    return dispatch.select(
        "linear_cross_entropy",
        backend,
        device=hidden.device,
        dtype=hidden.dtype,
        width=hidden.shape[1],
        vocabulary=weight.shape[0],
    )


def _check(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    hidden_needs_grad: bool,
    weight_needs_grad: bool,
    backend: str,
) -> tuple:
    # A target outside the vocabulary makes the loss NaN here: the function around the op looks at targets.
    validate(hidden, weight, target, ignore_index, label_smoothing, z_loss, "sum", targets=False)
    needs = hidden_needs_grad, weight_needs_grad
    return hidden, weight, target, ignore_index, label_smoothing, z_loss, *needs, _select(hidden, weight, backend)


@custom_op("slap_fast::linear_cross_entropy", check=_check, rule=autocast.low)
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    hidden_needs_grad: bool,
    weight_needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].loss_and_gradients(
        hidden, weight, target, ignore_index, label_smoothing, z_loss, hidden_needs_grad, weight_needs_grad
    )


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    hidden_needs_grad: bool,
    weight_needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty((), dtype=accumulator(hidden.dtype)),
        empty_gradient(hidden, hidden_needs_grad),
        empty_gradient(weight, weight_needs_grad),
    )


register_autograd(_linear_cross_entropy, positions=(0, 1))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """`cross_entropy(hidden @ weight.T, target)` over a packed batch of T tokens and a vocabulary of V.

    Args:
        hidden: `[T, D]` float32, bfloat16, float16 or float64. Logits and sums are float32 (float64 for float64), of
            inputs in the low type under autocast.
        weight: `[V, D]`, dtype and device of `hidden`.
        target: `[T]` int64, in [0, V) or `ignore_index`.
        ignore_index: target of the tokens that count neither in the sum nor in the mean.
        label_smoothing: share of the target spread evenly over the vocabulary, in [0, 1].
        z_loss: coefficient, at least 0, of each token's squared log-sum-exp.
        reduction: "mean" over the tokens that are not ignored, or "sum".
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        Scalar, float32 (float64 for float64). Where no token counts it is 0 with gradients of 0, not the NaN of
        PyTorch's mean: one empty rank must not poison the others.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, a backend that cannot serve, or on the CPU a
            target outside the vocabulary. On a GPU targets are not read back: such a token makes the loss NaN.
    """
    hidden, weight = autocast.cast(autocast.low, hidden, weight)
    validate(hidden, weight, target, ignore_index, label_smoothing, z_loss, reduction)
    chosen = _select(hidden, weight, backend)
    total, _, _ = _linear_cross_entropy(
        hidden,
        weight,
        target,
        ignore_index,
        label_smoothing,
        z_loss,
        needs_grad(hidden),
        needs_grad(weight),
        chosen,
    )
    if reduction == "sum":
        return total
    return total / (target != ignore_index).sum().clamp_min(1)
