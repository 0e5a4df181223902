"""The contrastive losses in Triton: launchers of the statistics and of the gradients.

The floor on an H100 SXM (990 TFLOP/s dense in 16 bits, 3.35 TB/s) at B = 32,768 and D = 768, 1.65 TFLOP a product of
the whole: 1.7 ms for the statistics, 5.0 ms for the gradients (the similarities once more, and two products). A
similarity costs 1,536 operations of the tensor cores and about 20 others, two of them exponentials, of which a
multiprocessor does 16 a cycle: a third of the time of its product, hidden behind that of its other program.

Memory: statistics work through blocks of 16,384 x 16,384 similarities, whose tiles leave 42 MB of parts (with ids 84),
whatever the batch. Gradients hold a block of 128 MiB, and float32 sums for the columns if rows take several blocks.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from slap_fast.kernels import launch, score_parts
from slap_fast.kernels.contrastive_gradient import gradient_kernel
from slap_fast.kernels.contrastive_statistics import (
    finish_columns_kernel,
    finish_rows_kernel,
    statistics_kernel,
)
from slap_fast.kernels.score_blocks import block_shape, blocks
from slap_fast.kernels.score_parts import fold, running
from slap_fast.kernels.score_products import float16_unit, gradients
from slap_fast.kernels.score_tiles import score_tile_for, tile_constants

_FINISH = 256


class _Call:
    """What the launches of one call share."""

    def __init__(
        self,
        audio: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        ids: tuple[Tensor, Tensor] | None,
        kind: str,
    ) -> None:
        self.tile = score_tile_for(audio.dtype, launch.capability(audio.device))
        self.scale = logit_scale.reshape(()).float()
        # A kernel that takes no bias, or no ids, is given some pointer all the same.
        self.bias = self.scale if logit_bias is None else logit_bias.reshape(()).float()
        self.audio_keys, self.text_keys, self.counts = (self.scale,) * 3 if ids is None else _keys(*ids)
        self.kind: dict[str, object] = {
            "INFONCE": kind == "infonce",
            "HAS_BIAS": logit_bias is not None,
            "HAS_IDS": ids is not None,
        }
        self.constants = self.kind | tile_constants(self.tile, audio.dtype, audio.shape[1])
        if ids is None:  # with ids it would spill
            self.constants["maxnreg"] = self.tile.registers


def _keys(audio_ids: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys int32 that are equal where ids are, and each row's number of positives."""
    ordered = text_ids.sort().values
    audio_keys = torch.searchsorted(ordered, audio_ids, out_int32=True)
    counts = torch.searchsorted(ordered, audio_ids, out_int32=True, right=True) - audio_keys
    return audio_keys.masked_fill_(counts == 0, -1), torch.searchsorted(ordered, text_ids, out_int32=True), counts


def sums(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    ids: tuple[Tensor, Tensor] | None,
    offset: int,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """row_loss, column_loss, row_positive, row_facts and column_best of `contrastive_sums`; last strides are 1."""
    rows, columns = audio.shape[0], text.shape[0]
    call = _Call(audio, text, logit_scale, logit_bias, ids, kind)
    tile, streams = call.tile, 1 if ids is None else 2

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=audio.device)

    running_r, running_c = (running(streams, *shape, audio.device) for shape in ((3, rows), (2, columns)))
    positive_similarity = floats(rows)
    block_r, block_c = block_shape(rows, columns, score_parts.AREA)
    most_r, most_c = min(rows, block_r), min(columns, block_c)
    row_parts = floats(streams * 3 * triton.cdiv(most_c, tile.columns) * most_r)
    column_parts = floats(streams * 2 * triton.cdiv(most_r, tile.rows) * most_c)
    row_loss, row_positive, row_facts = floats(rows), floats(rows), floats(4, rows)
    column_loss, column_best = floats(columns), floats(2, columns)
    exponential = kind == "infonce"
    with launch.on_device_of(audio):
        for begin_r, end_r in blocks(rows, block_r):
            for begin_c, end_c in blocks(columns, block_c):
                height, width = end_r - begin_r, end_c - begin_c
                tiles_r, tiles_c = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
                statistics_kernel[(tiles_r * tiles_c,)](
                    audio, text, call.scale, call.bias, call.audio_keys, call.text_keys, positive_similarity,
                    row_parts, column_parts, audio.stride(0), text.stride(0),
                    begin_r, begin_c, end_r, end_c, offset, tiles_r, tiles_c, height, width, **call.constants,
                )  # fmt: skip
                fold(row_parts, running_r, tiles_c, begin_r, height, exponential=exponential)
                fold(column_parts, running_c, tiles_r, begin_c, width, exponential=exponential)
        if rows:
            finish_rows_kernel[(triton.cdiv(rows, _FINISH),)](
                running_r, positive_similarity, call.counts, call.scale, call.bias, row_loss, row_positive, row_facts,
                rows, columns, offset, BLOCK=_FINISH, enable_fp_fusion=False, **call.kind,
            )  # fmt: skip
        if columns:
            finish_columns_kernel[(triton.cdiv(columns, _FINISH),)](
                running_c, positive_similarity, call.scale, call.bias, column_loss, column_best,
                rows, columns, offset, BLOCK=_FINISH, enable_fp_fusion=False, **call.kind,
            )  # fmt: skip
    return row_loss, column_loss, row_positive, row_facts, column_best


def sums_backward(
    grad_row: Tensor,
    grad_column: Tensor,
    grad_positive: Tensor,
    row_loss: Tensor,
    column_loss: Tensor,
    row_facts: Tensor,
    column_best: Tensor,
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    ids: tuple[Tensor, Tensor] | None,
    offset: int,
    kind: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of audio and text in their dtype, and of scale and bias (zero where there is none) in float32."""
    call = _Call(audio, text, logit_scale, logit_bias, ids, kind)
    tile = call.tile
    if ids is not None:
        grad_positive = grad_positive / call.counts.clamp_min(1)
    weights = [grad_row, grad_column, grad_positive] if kind == "infonce" else [grad_row]
    unit = float16_unit(weights, audio.dtype)
    weights = [weight * unit for weight in weights] + [grad_row] * (3 - len(weights))
    column_largest = column_best.amax(0)
    has_bias = logit_bias is not None
    parts = torch.empty(0, dtype=torch.float32, device=audio.device)
    grad_scalars = torch.zeros(1 + has_bias, dtype=torch.float64, device=audio.device)

    def fill(grad: Tensor, own_rows: tuple[int, int], own_columns: tuple[int, int]) -> None:
        nonlocal parts
        tiles_r, tiles_c = triton.cdiv(grad.shape[0], tile.rows), triton.cdiv(grad.shape[1], tile.columns)
        if parts.shape[0] == 0:  # of the first block, the largest
            parts = torch.empty(1 + has_bias, tiles_r * tiles_c, dtype=torch.float32, device=audio.device)
        gradient_kernel[(tiles_r * tiles_c,)](
            audio, text, call.scale, call.bias, call.audio_keys, call.text_keys, unit,
            *weights, row_facts[3], row_loss, column_largest, column_loss, grad, parts,
            audio.stride(0), text.stride(0), grad.stride(0), parts.stride(0),
            own_rows[0], own_columns[0], own_rows[1], own_columns[1], offset, tiles_r, tiles_c, **call.constants,
        )  # fmt: skip
        grad_scalars.add_(parts[:, : tiles_r * tiles_c].sum(1, dtype=torch.float64))

    with launch.on_device_of(audio):
        grad_audio, grad_text = gradients(
            audio, text, fill, dtype=audio.dtype, factor=call.scale / unit, block_rows=chunk_size
        )
    grad_bias = grad_scalars[1].float() if has_bias else torch.zeros_like(unit)
    return grad_audio, grad_text, grad_scalars[0].float(), grad_bias
