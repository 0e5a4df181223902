"""Cross-entropy of a vocabulary projection without the `[T, V]` logits: the loss of a caption decoder.

    loss = linear_cross_entropy(hidden, weight, target)    # [T, D], [V, D], [T] int64 -> []

Logits exist for one chunk of tokens at a time, and where gradients are needed they are computed from the same chunk:
three matrix products in total. Definitions: PyTorch's `cross_entropy` for `ignore_index` and `label_smoothing`; PaLM
(arXiv 2204.02311, section 5) for the z-loss.
"""

from __future__ import annotations

from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.linear_cross_entropy import backend_native, backend_torch, backend_triton
from slap_fast.ops.linear_cross_entropy.call import (
    Backend,
    LinearCrossEntropyCall,
    check,
    require_reduction,
    select,
    validate,
    validate_targets,
)
from slap_fast.ops.loss_gradients import empty_gradient, needs_grad, register_autograd
from slap_fast.ops.tensor_checks import accumulator

# In order of preference. PyTorch's own chunked `linear_cross_entropy` (2.13) is not among them: it has no label
# smoothing and no z-loss, and on a CPU, for 2,048 tokens of 512 floats and a vocabulary of 50,368, it took 8.1 times as
# long as `cross_entropy` of all logits with its default chunks, and 1.7 times as long with chunks of 512 tokens.
BACKENDS: dict[str, Backend] = {"native": backend_native, "triton": backend_triton, "torch": backend_torch}
dispatch.register(
    "linear_cross_entropy",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op("slap_fast::linear_cross_entropy", check=check, rule=autocast.low)
def _linear_cross_entropy(call: LinearCrossEntropyCall, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].loss_and_gradients(call)


@_linear_cross_entropy.register_fake
def _(call: LinearCrossEntropyCall, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return (
        call.hidden.new_empty((), dtype=accumulator(call.hidden.dtype)),
        empty_gradient(call.hidden, call.hidden_needs_grad),
        empty_gradient(call.weight, call.weight_needs_grad),
    )


register_autograd(_linear_cross_entropy, ("hidden", "weight"))


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
        hidden: `[T, D]` float32, bfloat16, float16 or float64. Logits and sums are float32 (float64 for float64); under
            autocast `hidden` and `weight` are cast to its dtype first.
        weight: `[V, D]`, dtype and device of `hidden`.
        target: `[T]` int64, in [0, V) or `ignore_index`.
        ignore_index: target of the tokens that count neither in the sum nor in the mean.
        label_smoothing: share of the target spread evenly over the vocabulary, in [0, 1].
        z_loss: coefficient, at least 0, of each token's squared log-sum-exp.
        reduction: "mean" over the tokens that are not ignored, or "sum".
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        Scalar, float32 (float64 for float64). Where no token counts it is 0 with gradients of 0, unlike the NaN of
        PyTorch's mean: a rank without captions must not make the loss of all ranks NaN.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, a backend that cannot serve, or on the CPU a
            target outside the vocabulary. On a GPU targets are not read back: such a token makes the loss NaN.
    """
    hidden, weight = autocast.cast(autocast.low, hidden, weight)
    needs = needs_grad(hidden), needs_grad(weight)
    call = validate(LinearCrossEntropyCall(hidden, weight, target, ignore_index, label_smoothing, z_loss, *needs))
    require_reduction(reduction)
    validate_targets(call)
    total, _, _ = _linear_cross_entropy(call, select(call, backend))
    return total if reduction == "sum" else total / (target != ignore_index).sum().clamp_min(1)
