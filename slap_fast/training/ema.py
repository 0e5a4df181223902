"""The teacher: an exponential moving average of the student, kept in float32 whatever the model's precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from slap_fast.training.checkpoint.state_slices import AVERAGE, Slice, shard_extent


class TeacherAverage:
    """Moves each teacher parameter towards its student parameter.

    The teacher is a frozen submodule of the engine's model. At ZeRO stages 0 to 2 every rank averages whole parameters;
    at stage 3 each rank averages its own shard. Where the teacher's parameters are not float32, the average lives in a
    float32 replica beside them: in bfloat16 a step of `1 - momentum` would be rounded away.

    Args:
        pairs: `(name, teacher parameter, student parameter)`, after `deepspeed.initialize`.
    """

    def __init__(self, pairs: Iterable[tuple[str, nn.Parameter, nn.Parameter]]) -> None:
        names, teachers, students = zip(*pairs, strict=True)
        self.names: list[str] = list(names)
        self._teachers: list[Any] = list(teachers)
        self._students: list[Any] = list(students)
        self._sharded = hasattr(self._teachers[0], "ds_id")
        held = self._held()
        self._replicas = None if held[0].dtype == torch.float32 else [tensor.float() for tensor in held]

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * student`; call it only after a step that was applied."""
        averages = self._held() if self._replicas is None else self._replicas
        torch._foreach_lerp_(averages, self._current(), 1.0 - momentum)
        self.publish()

    def slices(self) -> list[Slice]:
        """The average as this rank holds it: its shards at stage 3, elsewhere all of it."""
        averages = self._held() if self._replicas is None else self._replicas
        slices = []
        for name, teacher, average in zip(self.names, self._teachers, averages, strict=True):
            offset, length = shard_extent(teacher) if self._sharded else (0, average.numel())
            if length:
                slices.append(Slice(AVERAGE, name, offset, average.view(-1)[:length], replicated=not self._sharded))
        return slices

    @torch.no_grad()
    def publish(self) -> None:
        """Give the teacher that runs the values of the average. A collective call at stage 3."""
        if self._replicas is not None:
            torch._foreach_copy_(self._held(), self._replicas)
        if not self._sharded:
            return
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        # Small parameters stay gathered between steps; without this the forward pass would go on with their old values.
        gathered = [teacher for teacher in self._teachers if teacher.ds_status is ZeroParamStatus.AVAILABLE]
        if gathered:
            gathered[0].partition(gathered)
            gathered[0].all_gather(gathered)

    def _held(self) -> list[Tensor]:
        return [teacher.ds_tensor.data if self._sharded else teacher.data for teacher in self._teachers]

    def _current(self) -> list[Tensor]:
        if not self._sharded:
            return [student.detach().float() for student in self._students]
        from deepspeed.utils import safe_get_local_fp32_param

        # Offloaded optimizer states are on the host, whatever the device of the teacher's shards.
        return [
            safe_get_local_fp32_param(student).detach().view(-1).to(teacher.ds_tensor.device)
            for teacher, student in zip(self._teachers, self._students, strict=True)
        ]
