"""Error bound of the tests: at most twice the error of PyTorch in the same dtype on the same machine."""

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
    """In the 2-norm, each of `ours` is at most twice as far from `exact` as its counterpart in `pytorch`.

    PyTorch may hit the exact value by chance, so a few rounding errors are added: those of float32, in which 16-bit
    dtypes are summed, or a fraction of one in the dtype of the result.

    Args:
        ours: results to check.
        pytorch: PyTorch's results in the same dtypes.
        exact: float64 results; the results must be finite in the same places.
        names: of the results, for messages; default: positions.
        size: norm of terms that cancel in a result; rounding errors scale with the larger of it and the result's norm.
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
        assert error <= 2 * peer_error + rounding, f"{name}: error {error:.3g}, PyTorch's {peer_error:.3g}"
