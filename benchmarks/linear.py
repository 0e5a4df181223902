"""Linear layers of the audio encoder: slap-fast against the libraries that PyTorch calls, and against OpenBLAS.

`y = x @ weight.T` for the projections of a block. "Forward and backward" also computes the gradients of `x` and
`weight` from one of `y`: three products. 125 tokens are a clip of 5 s; 1,500 are two of 30 s.

- PyTorch: `F.linear`: MKL for float32, oneDNN for bfloat16.
- MKL, prepacked and oneDNN, prepacked: what TorchInductor calls for frozen weights, which are packed before the timing.
- NumPy: OpenBLAS.

Compute-bound: 2 FLOP for each token and weight forward, 6 with backward. The case "matrix product" is the peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings
from benchmarks.harness.inputs import normal
from benchmarks.harness.machine import has_bf16_units
from benchmarks.matrix_product import DTYPE_NAMES, USEFUL, product_case, product_name
from slap_fast.config.model import ModelConfig
from slap_fast.ops import linear

TITLE = "Linear layers, forward and backward"

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
PACKS = {"a clip of 5 s": 125, "60 s": 1500}

Layer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """Random input, weight and gradient, the same at every call."""

    tokens: int
    columns: int
    depth: int
    dtype: torch.dtype
    device: str

    def x(self) -> Tensor:
        return self._numbers(0, self.tokens, self.depth)

    def weight(self) -> Tensor:
        return self._numbers(1, self.columns, self.depth)

    def gradient(self) -> Tensor:
        return self._numbers(2, self.tokens, self.columns)

    def _numbers(self, seed: int, *shape: int) -> Tensor:
        return normal(seed, *shape, device=self.device, dtype=self.dtype)


def cases(settings: Settings) -> list[Case]:
    audio = ModelConfig().audio
    width, hidden = (32, 48) if settings.quick else (audio.width, audio.mlp_width)
    layers = {"qkv": (3 * width, width), "MLP up": (2 * hidden, width), "MLP down": (width, hidden)}
    dtypes = [torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])]
    found = []
    for dtype in dtypes:
        for length, tokens in PACKS.items():
            for name, (columns, depth) in layers.items():
                product = Product(tokens // 20 if settings.quick else tokens, columns, depth, dtype, settings.device)
                directions = (False, True) if length == "60 s" else (False,)
                found += [_case(f"{name}, {length}", product, backward=backward) for backward in directions]
        found.append(product_case(dtype, settings))
    return found


def _case(name: str, product: Product, *, backward: bool) -> Case:
    run = partial(_both_ways if backward else _forward, product)
    on_gpu = "for CPUs" if product.device != "cpu" else None
    peers = [Peer("PyTorch", lambda: run(F.linear)), Peer("slap-fast", lambda: run(linear))]
    if not backward:
        only_float32 = None if product.dtype == torch.float32 else "float32 only"
        no_mkl = None if torch.backends.mkl.is_available() else "PyTorch was built without MKL"
        no_onednn = None if torch.backends.mkldnn.is_available() else "PyTorch was built without oneDNN"
        peers += [
            Peer("MKL, prepacked", lambda: run(_mkl(product)), on_gpu or no_mkl or only_float32),
            Peer("oneDNN, prepacked", lambda: run(_onednn(product)), on_gpu or no_onednn),
            Peer("NumPy", lambda: run(_numpy(product)), on_gpu or only_float32),
        ]
    return Case(
        name=f"{name}, {'forward and backward' if backward else 'forward'}, {DTYPE_NAMES[product.dtype]}",
        peers=tuple(peers),
        baseline="PyTorch",
        reference=lambda: _reference(product, backward=backward),
        tolerance=TOLERANCES[product.dtype],
        work={USEFUL: 2e-9 * product.tokens * product.columns * product.depth * (3 if backward else 1)},
        facts={"tokens": product.tokens, "weight": f"{product.columns} x {product.depth}"},
        peak=product_name(product.dtype),
    )


def _mkl(product: Product) -> Layer:
    ops, weight = torch.ops.mkl, product.weight()
    packed = ops._mkl_reorder_linear_weight(weight, product.tokens)
    return lambda x, _: ops._mkl_linear(x, packed, weight, None, product.tokens)


def _onednn(product: Product) -> Layer:
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(product.weight(), product.tokens)
    return lambda x, _: ops._linear_pointwise(x, packed, None, "none", [], "")


def _numpy(product: Product) -> Layer:
    weight = product.weight().numpy().T
    return lambda x, _: torch.from_numpy(x.numpy() @ weight)


def _forward(product: Product, layer: Layer) -> Run:
    x, weight = product.x(), product.weight()

    def step() -> Outputs:
        with torch.no_grad():
            return {"y": layer(x, weight)}

    return Run(step=step, outputs=step)


def _both_ways(product: Product, layer: Layer) -> Run:
    x, weight, gradient = product.x().requires_grad_(), product.weight().requires_grad_(), product.gradient()

    def step() -> Outputs:
        y = layer(x, weight)
        found = torch.autograd.grad(y, (x, weight), gradient)
        return {"y": y.detach()} | dict(zip(("grad of x", "grad of weight"), found, strict=True))

    return Run(step=step, outputs=step)


def _reference(product: Product, *, backward: bool) -> Outputs:
    x, weight, gradient = product.x().double(), product.weight().double(), product.gradient().double()
    y = {"y": x @ weight.t()}
    return y | {"grad of x": gradient @ weight, "grad of weight": gradient.t() @ x} if backward else y
