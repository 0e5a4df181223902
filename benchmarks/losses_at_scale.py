"""Contrastive losses of batches whose similarity matrix does not fit into memory: slap-fast alone.

B = 131,072 on a CPU, where the matrix would take 69 GB in float32, and 1,048,576 on a GPU, where it would take 4.4 TB
and Inf-CL is a peer of the softmax. 768 channels, forward and backward: 8 B² D are 106 TFLOP and 6.8 PFLOP. Lower
bounds per step: 217 s in float32 and 123 s in bf16 for two AVX-512 cores (486 and 860 GFLOP/s), 9.6 s for a GPU at 700
TFLOP/s in bf16. Steps of minutes run four times, two of them to measure memory.

Runs only if named: `python -m benchmarks losses_at_scale`. See `losses` for the rest.
"""

from __future__ import annotations

from functools import partial

from benchmarks import losses_peers as peers
from benchmarks.harness.case import Case, Peer, Settings
from benchmarks.losses import contrastive_case, contrastive_workloads, inf_cl_peers, measured_dtypes
from benchmarks.losses_workload import Contrastive
from benchmarks.matrix_product import product_case

TITLE = "Contrastive losses of batches beyond any matrix, forward and backward"
BY_NAME_ONLY = True


def cases(settings: Settings) -> list[Case]:
    batch = 512 if settings.quick else 131_072 if settings.device == "cpu" else 1_048_576
    return [
        *(product_case(dtype, settings) for dtype in measured_dtypes(settings)),
        *(
            contrastive_case(workload, [*inf_cl_peers(workload), _ours(workload)])
            for workload in contrastive_workloads(batch, settings)
        ),
    ]


def _ours(workload: Contrastive) -> Peer:
    """The backend that "auto" selects."""
    return Peer("slap-fast", partial(peers.contrastive_backend, workload, "auto"))
