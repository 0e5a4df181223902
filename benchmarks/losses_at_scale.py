"""The contrastive losses of batches whose similarities no memory holds: slap-fast alone.

B = 131,072 on a CPU, where a matrix of all pairs would take 69 GB in float32, and 1,048,576 on a GPU, where it would
take 4.4 TB; there Inf-CL is a peer of the softmax. 768 channels, forward and backward: 8 B² D are 106 TFLOP and 6.8
PFLOP. Two AVX-512 cores at 486 GFLOP/s in float32 and 860 in bf16 cannot take less than 217 and 123 s a step, a GPU at
700 TFLOP/s in bf16 9.6 s. A step of minutes is taken four times, two of them for its memory.

Run only where it is named: `python -m benchmarks losses_at_scale`. See `losses` for the rest.
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
    """The backend that serves where none is named."""
    return Peer("slap-fast", partial(peers.contrastive_backend, workload, "auto"))
