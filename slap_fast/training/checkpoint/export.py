"""Model export: the float32 student with its tokenizer, from an engine or from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slap_fast.errors import SlapFastError
from slap_fast.models.slap import SLAP
from slap_fast.runtime.durable_files import complete_or_absent
from slap_fast.training.checkpoint.folder import Manifest, find_damage, rank_file, read_manifest, read_model_files
from slap_fast.training.checkpoint.slice_files import SliceReader, write_slices
from slap_fast.training.checkpoint.state_slices import WEIGHT
from slap_fast.training.frozen import whole_float32
from slap_fast.training.zero import full_parameter

_STUDENT = "student."


class ExportError(SlapFastError, ValueError):
    """No model can be exported from the checkpoint."""


def save_student(engine: Any, folder: Path) -> None:
    """Save the student with `SLAP.save_pretrained`; `folder` appears complete or not at all. A collective call.

    Raises:
        OSError: on rank 0, if the files cannot be written.
    """
    student = engine.module.student
    weights = full_weights(engine, student)
    if dist.get_rank() == 0:
        model = standalone_student(student, weights)
        with complete_or_absent(folder) as partial:
            model.save_pretrained(partial)
    dist.barrier()


def standalone_student(student: SLAP, weights: dict[str, Tensor]) -> SLAP:
    """A copy of a student with `weights`, independent of the engine that holds the student's parameters."""
    from transformers.initialization import no_init_weights

    text_config = None if student.text_encoder is None else student.text_encoder.model.config
    with no_init_weights():
        model = SLAP(
            student.config, objectives=student.objectives, load_pretrained_text=False, text_hf_config=text_config
        )
    model.load_state_dict(weights)
    model.tokenizer = student.tokenizer
    return model


def export_checkpoint(checkpoint: Path, folder: Path) -> Manifest:
    """Write what `save_student` would have written at the step of a checkpoint; needs one process and no engine.

    Args:
        checkpoint: folder of a checkpoint of any ZeRO stage, precision and number of ranks.
        folder: must not exist.

    Returns:
        The manifest of the checkpoint.

    Raises:
        ExportError: the checkpoint is incomplete or damaged.
        OSError: files cannot be read or written.
    """
    manifest, weights = _read(checkpoint, (_STUDENT,))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(folder) as partial:
        # Only the files that the manifest lists.
        for name, content in read_model_files(checkpoint, manifest).items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        model = {name.removeprefix(_STUDENT): value for name, value in weights.items()}
        write_slices(partial / "model.safetensors", model)
    return manifest


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Float32 weights of the student and its prototype head by parameter name, such as `student.logit_scale.delta`.

    Raises:
        ExportError: the checkpoint is incomplete or damaged.
        OSError: files cannot be read.
    """
    return _read(checkpoint, (_STUDENT, "student_head."))[1]


def _read(checkpoint: Path, prefixes: tuple[str, ...]) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest, and the weights whose names start with one of the prefixes."""
    manifest = read_manifest(checkpoint)
    reason = find_damage(checkpoint, manifest) if isinstance(manifest, Manifest) else manifest
    if not isinstance(manifest, Manifest) or reason is not None:
        raise ExportError(f"{checkpoint} is incomplete or damaged: {reason}")
    with SliceReader([rank_file(checkpoint, rank) for rank in range(manifest.world_size)]) as reader:
        return manifest, {
            name: reader.whole(WEIGHT, name, shape)
            for name, shape in manifest.parameters.items()
            if name.startswith(prefixes)
        }


@torch.no_grad()
def full_weights(engine: Any, module: nn.Module, *, on_all_ranks: bool = False) -> dict[str, Tensor]:
    """Full state dict of a module inside an engine, on the CPU, from the float32 masters where they exist.

    A collective call. Empty on ranks other than 0, unless `on_all_ranks`.
    """
    weights = {}
    for name, value in module.state_dict(keep_vars=True).items():
        full = value
        if isinstance(value, nn.Parameter):
            frozen = whole_float32(value, engine.device)
            full = full_parameter(engine, value) if frozen is None else frozen
        if on_all_ranks or dist.get_rank() == 0:
            weights[name] = full.detach().to("cpu", copy=True)
    return weights
