"""Contrastive losses in Triton: launchers of the statistics (statistics.py, finish.py) and of the gradients.

Lower bounds of the time on an H100 SXM (990 TFLOP/s dense in 16 bits, 3.35 TB/s) for B = 32,768 and D = 768 (1.65
TFLOP per product): 1.7 ms for the statistics, 5.0 ms for the gradients (the similarities again, and two products). In
float32 by TF32x3, 165 TFLOP/s: 10 and 30 ms. Beside the 1,536 operations of its product, a similarity costs 21
instructions in the statistics and 14 in the gradients. Two are exponentials, of which a multiprocessor does 16 per
cycle: under half the time of a 16-bit product, overlapped with the product of the other program on the multiprocessor.

Memory: the statistics go through blocks of 2^28 similarities (16,384 x 16,384 unless a dimension is short), whose tiles
store 34 MB of partial sums (76 MB with ids) for any batch, plus with ids one byte per tile: 67 MB for a million clips.
The gradients hold a block of 128 MiB, and float32 sums for the columns if there are several blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from slap_fast.kernels import launch
from slap_fast.kernels.contrastive.finish import finish_columns_kernel, finish_rows_kernel, products_kernel
from slap_fast.kernels.contrastive.gradient import gradient_kernel
from slap_fast.kernels.contrastive.positives import positives_of
from slap_fast.kernels.contrastive.statistics import statistics_kernel
from slap_fast.kernels.scores import partial_sums
from slap_fast.kernels.scores.blocks import block_shape, blocks
from slap_fast.kernels.scores.gradient_products import float16_unit, gradients, store_product
from slap_fast.kernels.scores.partial_sums import fold, running
from slap_fast.kernels.scores.tiles import tile_constants, tile_shape
from slap_fast.kernels.variants import chosen

_FINISH = 256
_LOG2E = 1.4426950408889634

# Similarities that cuBLAS computes at a time: 32 MiB in float32, within the 50 MiB of an H100's L2.
_STORED_AREA = 1 << 23

_Range = tuple[int, int]


class _Launch:
    """Settings shared by the launches of one call."""

    def __init__(
        self,
        audio: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        audio_ids: Tensor | None,
        text_ids: Tensor | None,
        offset: int,
        kind: str,
    ) -> None:
        ids = None if audio_ids is None or text_ids is None else (audio_ids, text_ids)
        self.audio, self.text, self.offset = audio, text, offset
        self.rows, self.columns = audio.shape[0], text.shape[0]
        variant = chosen("contrastive_tile")
        self.tile = tile_shape(audio.dtype, launch.capability(audio.device), wide=variant == "128x256")
        self.scale = logit_scale.reshape(()).float()
        self.bias = torch.zeros_like(self.scale) if logit_bias is None else logit_bias.reshape(()).float()
        self.audio_keys, self.text_keys, self.counts, self.flags = positives_of(
            self.rows, self.columns, ids, offset, self.tile, audio.device
        )
        self.has_ids, self.has_bias, self.infonce = ids is not None, logit_bias is not None, kind == "infonce"
        self.kind: dict[str, object] = {"INFONCE": self.infonce, "HAS_IDS": self.has_ids}
        # In float32 cuBLAS takes three times as long as the TF32x3 of the tiles.
        self.stores = variant == "cublas" and audio.dtype != torch.float32
        self.stored, self.pitch = self.scale, 16  # a kernel needs some pointer for a tensor that it does not use
        self.constants = self.kind | tile_constants(self.tile, audio.dtype, audio.shape[1]) | {"STORED": self.stores}
        self.constants["maxnreg"] = self.tile.registers
        if self.stores:
            self.constants |= {"maxnreg": None, "num_warps": 16}

    def launches(self, own_rows: _Range, own_columns: _Range) -> Iterator[tuple[_Range, _Range]]:
        """The parts of a block, one per launch, with their similarities stored; the whole block if none are stored."""
        if not self.stores:
            yield own_rows, own_columns
            return
        height, width = own_rows[1] - own_rows[0], own_columns[1] - own_columns[0]
        block_r, block_c = block_shape(height, width, _STORED_AREA)
        if self.stored.numel() < block_r * block_c:
            self.stored = self.audio.new_zeros(block_r * block_c, dtype=torch.float32)
        block = self.stored[: block_r * block_c].view(block_r, block_c)
        for first, last in blocks(height, block_r):
            for begin, end in blocks(width, block_c):
                part_r = own_rows[0] + first, own_rows[0] + last
                part_c = own_columns[0] + begin, own_columns[0] + end
                out = block[: last - first, : end - begin]
                store_product(out, self.audio[slice(*part_r)], self.text[slice(*part_c)].T)
                self.pitch = block_c
                yield part_r, part_c

    def tiles(self, own_rows: _Range, own_columns: _Range) -> tuple[int, int]:
        tiles_r = triton.cdiv(own_rows[1] - own_rows[0], self.tile.rows)
        return tiles_r, triton.cdiv(own_columns[1] - own_columns[0], self.tile.columns)


def sums(
    *,
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results of `ops.contrastive.call.Backend.forward`.

    The arguments are those of `ContrastiveCall`, with last strides of 1; `chunk_size` has no effect here.
    """
    with launch.on_device_of(audio):
        return _sums(_Launch(audio, text, logit_scale, logit_bias, audio_ids, text_ids, offset, kind))


def _sums(call: _Launch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, columns, tile, device = call.rows, call.columns, call.tile, call.audio.device
    slots_r, slots_c = 2, 2 if call.infonce else 1

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    negatives_r, negatives_c = running(1, slots_r, rows, device), running(1, slots_c, columns, device)
    positives_r, positives_c = negatives_r, negatives_c
    if call.has_ids:
        positives_r, positives_c = running(1, 3, rows, device), running(1, slots_c, columns, device)
    positive_similarity = floats(rows)
    block_r, block_c = block_shape(rows, columns, partial_sums.AREA)
    most_r, most_c = call.tiles((0, min(rows, block_r)), (0, min(columns, block_c)))
    row_parts = floats((5 if call.has_ids else 2) * most_c * most_r * tile.rows)
    column_parts = floats((2 if call.has_ids else 1) * slots_c * most_r * most_c * tile.columns)
    for own_rows in blocks(rows, block_r):
        for own_columns in blocks(columns, block_c):
            begin_r, begin_c = own_rows[0], own_columns[0]
            tiles_r, tiles_c = call.tiles(own_rows, own_columns)
            pitch_r, pitch_c = tiles_r * tile.rows, tiles_c * tile.columns
            slot_r, slot_c = tiles_c * pitch_r, tiles_r * pitch_c
            for part_r, part_c in call.launches(own_rows, own_columns):
                grid_r, grid_c = call.tiles(part_r, part_c)
                before_r, before_c = call.tiles((begin_r, part_r[0]), (begin_c, part_c[0]))
                statistics_kernel[(grid_r * grid_c,)](
                    call.audio, call.text, call.stored, call.scale, call.bias,
                    call.audio_keys, call.text_keys, call.flags, positive_similarity,
                    row_parts[before_c * pitch_r + part_r[0] - begin_r :],
                    column_parts[before_r * pitch_c + part_c[0] - begin_c :],
                    call.audio.stride(0), call.text.stride(0), call.pitch,
                    part_r[0] // tile.rows, part_c[0] // tile.columns, rows, columns, call.offset, grid_r, grid_c,
                    pitch_r, pitch_c, slot_r, slot_c, **call.constants,
                )  # fmt: skip
            height, width = own_rows[1] - begin_r, own_columns[1] - begin_c
            of_rows = {"pitch": pitch_r, "exponential": call.infonce}
            of_columns = {"pitch": pitch_c, "exponential": call.infonce}
            fold(row_parts, negatives_r, tiles_c, begin_r, height, **of_rows)
            fold(column_parts, negatives_c, tiles_r, begin_c, width, **of_columns)
            if call.has_ids:
                flags = call.flags[begin_r // tile.rows :, begin_c // tile.columns :]
                fold(
                    row_parts[slots_r * slot_r :], positives_r, tiles_c, begin_r, height,
                    flags=flags.T, flagged=tile.rows, **of_rows,
                )  # fmt: skip
                fold(
                    column_parts[slots_c * slot_c :], positives_c, tiles_r, begin_c, width,
                    flags=flags, flagged=tile.columns, **of_columns,
                )  # fmt: skip
    row_loss, row_positive, row_stats = floats(rows), floats(rows), floats(4, rows)
    column_loss, column_best = floats(columns), floats(2, columns)
    if rows:
        finish_rows_kernel[(triton.cdiv(rows, _FINISH),)](
            negatives_r, positives_r, positive_similarity, _similarity_sums(call.audio, call.text), call.counts,
            call.scale, call.bias, row_loss, row_positive, row_stats,
            rows, columns, call.offset, BLOCK=_FINISH, enable_fp_fusion=False, **call.kind,
        )  # fmt: skip
    if columns:
        finish_columns_kernel[(triton.cdiv(columns, _FINISH),)](
            negatives_c, positives_c, positive_similarity, call.scale, call.bias, column_loss, column_best,
            rows, columns, call.offset, BLOCK=_FINISH, enable_fp_fusion=False, **call.kind,
        )  # fmt: skip
    return row_loss, column_loss, row_positive, row_stats, column_best


def _similarity_sums(audio: Tensor, text: Tensor) -> Tensor:
    """`[R]` float32 sums of each row's similarities: its product with the sum of all columns."""
    totals = audio.new_empty(audio.shape[0], dtype=torch.float32)
    products_kernel[(triton.cdiv(audio.shape[0], 16),)](
        audio, text.sum(0, dtype=torch.float32), totals, audio.stride(0), audio.shape[0],
        DEPTH=audio.shape[1], BLOCK=16, BLOCK_D=128,
    )  # fmt: skip
    return totals


def sums_backward(
    *,
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    audio_ids: Tensor | None,
    text_ids: Tensor | None,
    offset: int,
    kind: str,
    chunk_size: int,
    grad_row: Tensor,
    grad_column: Tensor,
    grad_positive: Tensor,
    row_loss: Tensor,
    column_loss: Tensor,
    row_stats: Tensor,
    column_best: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of audio and text in their dtype, and of scale and bias (0 without a bias) in float32.

    The arguments are those of `ContrastiveCall` and `BackwardInputs`, with last strides of 1.
    """
    with launch.on_device_of(audio):
        call = _Launch(audio, text, logit_scale, logit_bias, audio_ids, text_ids, offset, kind)
        unit = float16_unit([grad_row, grad_column, grad_positive] if call.infonce else [grad_row], audio.dtype)
        if call.infonce:
            if call.has_ids:
                grad_positive = grad_positive / call.counts.clamp_min(1)
            rows_of = _packed(grad_row * unit, row_stats[3], row_loss * _LOG2E, grad_positive * unit)
            columns_of = _packed(grad_column * unit, column_best.amax(0), column_loss * _LOG2E)
        else:
            rows_of = columns_of = _packed(grad_row * unit)
        return _gradients(call, rows_of, columns_of, unit, chunk_size)


def _packed(*vectors: Tensor) -> Tensor:
    """`[vectors, pitch]`, each at an aligned address so that loads can be wider than 4 bytes."""
    size = vectors[0].shape[0]
    packed = vectors[0].new_empty(len(vectors), -(-size // 16) * 16 or 16)
    torch.stack(vectors, out=packed[:, :size])
    return packed


def _gradients(
    call: _Launch, rows_of: Tensor, columns_of: Tensor, unit: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    audio, text, tile = call.audio, call.text, call.tile
    parts = torch.empty(0, dtype=torch.float32, device=audio.device)
    grad_scalars = torch.zeros(1 + call.has_bias, dtype=torch.float64, device=audio.device)

    def fill(grad: Tensor, own_rows: _Range, own_columns: _Range) -> None:
        nonlocal parts
        tiles_r, tiles_c = call.tiles(own_rows, own_columns)
        if parts.shape[0] == 0:  # the first block is the largest
            parts = torch.empty(1 + call.has_bias, tiles_r * tiles_c, dtype=torch.float32, device=audio.device)
        done = 0
        for part_r, part_c in call.launches(own_rows, own_columns):
            grid_r, grid_c = call.tiles(part_r, part_c)
            gradient_kernel[(grid_r * grid_c,)](
                audio, text, call.stored, call.scale, call.bias, call.audio_keys, call.text_keys, call.flags, unit,
                rows_of, columns_of, grad[part_r[0] - own_rows[0] :, part_c[0] - own_columns[0] :], parts[:, done:],
                audio.stride(0), text.stride(0), call.pitch, grad.stride(0), parts.stride(0),
                rows_of.stride(0), columns_of.stride(0), part_r[0] // tile.rows, part_c[0] // tile.columns,
                call.rows, call.columns, call.offset, grid_r, grid_c, HAS_BIAS=call.has_bias, **call.constants,
            )  # fmt: skip
            done += grid_r * grid_c
        grad_scalars.add_(parts[:, :done].sum(1, dtype=torch.float64))

    factor = call.scale / unit
    grad_audio, grad_text = gradients(audio, text, fill, dtype=audio.dtype, factor=factor, block_rows=chunk_size)
    grad_bias = grad_scalars[1].float() if call.has_bias else torch.zeros_like(unit)
    return grad_audio, grad_text, grad_scalars[0].float(), grad_bias
