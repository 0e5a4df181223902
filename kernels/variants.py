"""Named variants of the kernels, to be chosen by measurement on a GPU. The first of each tuple is the default.

    with variants.use(attention_forward_global="128x64"):
        step()

Tiles are named rows x columns of the scores, for attention queries x keys. Launchers call `chosen` at each launch.
`python -m benchmarks.gpu_round` times every variant; to make one the default, move it to the front. A choice holds for
the whole process, not for a thread: autograd runs the backward in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

VARIANTS: dict[str, tuple[str, ...]] = {
    "prototype_scores": ("stored", "recomputed"),
    "prototype_tile": ("128x128", "128x256"),
    "caption_tile": ("128x128", "128x256"),
    "contrastive_tile": ("128x128", "128x256", "cublas"),
    "gradient_product": ("tf32x3", "cublas"),
    "attention_forward_global": ("128x64", "128x128", "64x128", "64x64"),
    "attention_forward_local": ("64x64", "64x32"),
    "attention_grad_q": ("64x64", "64x32"),
    "attention_grad_kv_global": ("64x64", "32x64"),
    "attention_grad_kv_local": ("32x64", "64x64"),
}

_chosen: dict[str, str] = {}


def chosen(name: str) -> str:
    """The variant of `name` that launches use now."""
    return _chosen.get(name, VARIANTS[name][0])


@contextmanager
def use(**choices: str) -> Iterator[None]:
    """Use the given variants inside the block. For benchmarks and tests.

    Raises:
        ValueError: an unknown name or variant.
    """
    for name, variant in choices.items():
        if variant not in VARIANTS.get(name, ()):
            known = "; ".join(f"{key}: {', '.join(values)}" for key, values in sorted(VARIANTS.items()))
            raise ValueError(f"no variant {name}={variant!r}; choose one of {known or 'none'}")
    before = dict(_chosen)
    _chosen.update(choices)
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(before)
