"""Bytes that collectives carry, by operation: a dispatch mode around the code that communicates."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Communication(TorchDispatchMode):
    """Counts the collectives of this process while it is active.

    Attributes:
        bytes: of the tensors that each operation takes, by its name, such as `allreduce_`: the whole tensor of a
            reduction, and of a gather this rank's part and the result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.bytes[func.overloadpacket.__name__] += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))
