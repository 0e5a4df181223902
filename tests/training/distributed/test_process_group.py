"""Process groups, and what bounds their waiting."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, distributed_c10d

from slap_fast.training.distributed.heartbeat import RendezvousError
from slap_fast.training.distributed.process_group import _connect, limit_waiting
from tests.training.ranks import free_port


def test_groups_that_are_made_later_have_the_timeout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    limit_waiting(7.0)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        for group in (dist.group.WORLD, dist.new_group([0])):
            assert isinstance(group, dist.ProcessGroup)
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)
        assert distributed_c10d._get_default_timeout(dist.Backend("nccl")) == timedelta(seconds=7)
    finally:
        dist.destroy_process_group()


def test_a_store_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(RendezvousError, match=r"^no store at 127\.0\.0\.1:\d+ within 0\.5 s \("):
        _connect(1, 0.5)
