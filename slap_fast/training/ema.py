"""The EMA teacher: an exponential moving average of the student, kept in float32 at any model precision."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slap_fast.training.checkpoint.state_slices import AVERAGE, Slice
from slap_fast.training.zero import is_sharded, local_master, local_shard, regather, shard_extent


class TeacherAverage:
    """Moves each teacher parameter towards its student parameter.

    The teacher is a frozen submodule of the engine's model. At ZeRO stages 0 to 2 every rank averages whole parameters;
    at stage 3 each rank averages its own shards. If the teacher is not float32, the average is a separate float32 copy:
    in bfloat16 an update by `1 - momentum` would be rounded away.

    Args:
        pairs: `(name, teacher parameter, student parameter)`, after `deepspeed.initialize`; none without a teacher.
    """

    def __init__(self, pairs: Iterable[tuple[str, nn.Parameter, nn.Parameter]]) -> None:
        pairs = list(pairs)
        self.names: list[str] = [name for name, _, _ in pairs]
        self._teachers: list[nn.Parameter] = [teacher for _, teacher, _ in pairs]
        self._students: list[nn.Parameter] = [student for _, _, student in pairs]
        running = self._running()
        in_float32 = all(tensor.dtype == torch.float32 for tensor in running)
        self._copies = None if in_float32 else [tensor.float() for tensor in running]

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * student`; call it only after a step that was applied."""
        if not self.names:
            return
        averages = self._averages()
        students = [local_master(p, average.device) for p, average in zip(self._students, averages, strict=True)]
        torch._foreach_lerp_(averages, students, 1.0 - momentum)
        self.publish()

    def slices(self) -> list[Slice]:
        """This rank's part of the average: its shards at stage 3, else all of it."""
        slices = []
        for name, teacher, average in zip(self.names, self._teachers, self._averages(), strict=True):
            offset, length = shard_extent(teacher)
            if length:
                value = average.view(-1)[:length]
                slices.append(Slice(AVERAGE, name, offset, value, replicated=not is_sharded(teacher)))
        return slices

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the average into the teacher that the forward pass uses. A collective call at stage 3."""
        if self._copies is not None:
            torch._foreach_copy_(self._running(), self._copies)
        regather(self._teachers)

    def _averages(self) -> list[Tensor]:
        return self._running() if self._copies is None else self._copies

    def _running(self) -> list[Tensor]:
        return [local_shard(teacher) for teacher in self._teachers]
