"""How wrong a result may be: at most twice as wrong as PyTorch's own in the same dtype, on whatever machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def assert_as_exact_as(
    ours: Iterable[Tensor],
    pytorch: Iterable[Tensor],
    exact: Iterable[Tensor],
    names: Sequence[str] = (),
    size: float = 0,
) -> None:
    """In the norm, each of `ours` is at most twice as far from `exact` as its like in `pytorch` is.

    PyTorch may happen to hit the number, so a few roundings come on top: of float32, in which 16-bit types are summed,
    or a part of one of the result's dtype.

    Args:
        exact: in float64; where it is not finite, neither may the result be.
        names: what a failure calls them, their positions by default.
        size: the norm of what cancels in a result; roundings are of the larger of this and the result's own norm.
    """
    for index, results in enumerate(zip(ours, pytorch, exact, strict=True)):
        mine, peer, wanted = (x.detach() for x in results)
        name = names[index] if names else index
        assert mine.dtype == peer.dtype, name
        seen = wanted.isfinite()
        assert torch.equal(mine.isfinite(), seen), name
        error, peer_error = (float((x.double() - wanted)[seen].norm()) for x in (mine, peer))
        summed = torch.promote_types(mine.dtype, torch.float32)
        rounding = max(4 * torch.finfo(summed).eps, torch.finfo(mine.dtype).eps / 8)
        rounding *= max(size, float(wanted[seen].norm()))
        assert error <= 2 * peer_error + rounding, f"{name}: error {error:.3g}, of PyTorch {peer_error:.3g}"
