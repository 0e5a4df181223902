"""The student in float32, with its tokenizer, as a model to use: from an engine or from a checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slap_fast.errors import SlapFastError
from slap_fast.models.slap import SLAP
from slap_fast.training.checkpoint import files
from slap_fast.training.checkpoint.files import Manifest
from slap_fast.training.checkpoint.slice_files import SliceReader, write_slices
from slap_fast.training.checkpoint.state_slices import WEIGHT


class ExportError(SlapFastError, ValueError):
    """A checkpoint that no model can be made of."""


def save_student(engine: Any, folder: Path) -> None:
    """`SLAP.save_pretrained` into `folder`, which appears whole or not at all. A collective call.

    Raises:
        OSError: on rank 0, if the files cannot be written.
    """
    student = engine.module.student
    weights = full_weights(engine, student)
    if dist.get_rank() == 0:
        model = model_like(student, weights)
        with _whole_or_absent(folder) as partial:
            model.save_pretrained(partial)
    dist.barrier()


def model_like(student: SLAP, weights: dict[str, Tensor]) -> SLAP:
    """A model of its own with whole `weights`, for a student whose parameters are an engine's."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = SLAP(student.config, load_pretrained_text=False, text_hf_config=student.text_encoder.model.config)
    model.load_state_dict(weights)
    model.tokenizer = student.tokenizer
    return model


def export_checkpoint(checkpoint: Path, folder: Path) -> Manifest:
    """What `save_student` would have written at the step of a checkpoint, on one process and without its engine.

    Args:
        checkpoint: of any ZeRO stage, precision and number of ranks.
        folder: does not exist yet.

    Returns:
        The manifest of the checkpoint.

    Raises:
        ExportError: the checkpoint is not whole.
        OSError: files cannot be read or written.
    """
    manifest = files.read_manifest(checkpoint)
    reason = files.fault(checkpoint, manifest) if isinstance(manifest, Manifest) else manifest
    if not isinstance(manifest, Manifest) or reason is not None:
        raise ExportError(f"{checkpoint} is not a whole checkpoint: {reason}")
    prefix = "student."
    with SliceReader([files.rank_file(checkpoint, rank) for rank in range(manifest.world_size)]) as reader:
        weights = {
            name.removeprefix(prefix): reader.whole(WEIGHT, name, shape)
            for name, shape in manifest.parameters.items()
            if name.startswith(prefix)
        }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _whole_or_absent(folder) as partial:
        # What the manifest vouches for, and not whatever else lies there.
        for name, content in files.described(checkpoint, manifest).items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        write_slices(partial / "model.safetensors", weights)
    return manifest


@contextmanager
def _whole_or_absent(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `folder` if all went well."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@torch.no_grad()
def full_weights(engine: Any, module: nn.Module, *, on_all_ranks: bool = False) -> dict[str, Tensor]:
    """On rank 0, the state of a module inside an engine: whole, on the CPU, from the float32 masters if there are any.

    A collective call. On other ranks nothing, unless `on_all_ranks`.
    """
    weights = {}
    for name, value in module.state_dict(keep_vars=True).items():
        full = _full_parameter(engine, value) if isinstance(value, nn.Parameter) else value
        if on_all_ranks or dist.get_rank() == 0:
            weights[name] = full.detach().to("cpu", copy=True)
    return weights


def _full_parameter(engine: Any, parameter: nn.Parameter) -> Tensor:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad and (full := safe_get_full_fp32_param(parameter)) is not None:
        return full
    if (master := _unpartitioned_masters(engine).get(parameter)) is not None:
        return master
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().float()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().float().clone()


def _unpartitioned_masters(engine: Any) -> dict[nn.Parameter, Tensor]:
    """The float32 masters of ZeRO stage 0 in bf16, which DeepSpeed's own lookup does not know."""
    groups = zip(
        getattr(engine.optimizer, "fp16_groups", ()), getattr(engine.optimizer, "fp32_groups", ()), strict=False
    )
    return {parameter: master for group in groups for parameter, master in zip(*group, strict=True)}
