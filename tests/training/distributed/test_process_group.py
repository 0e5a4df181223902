"""Process group: timeouts, and errors of the store."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, distributed_c10d

from slap_fast.training.distributed.heartbeat import RendezvousError
from slap_fast.training.distributed.process_group import _connect, set_default_timeout
from tests.training.ranks import free_port


def test_groups_created_later_have_the_timeout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    set_default_timeout(7.0)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        for group in (dist.group.WORLD, dist.new_group([0])):
            assert isinstance(group, dist.ProcessGroup)
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)
        assert distributed_c10d._get_default_timeout(dist.Backend("nccl")) == timedelta(seconds=7)
    finally:
        dist.destroy_process_group()


def test_a_missing_store_is_reported_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(RendezvousError, match=r"^no store at 127\.0\.0\.1:\d+ within 0\.5 s \("):
        _connect(1, 0.5)


def test_a_taken_port_is_reported_with_a_free_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(RendezvousError, match=rf"port {port} of 127\.0\.0\.1 is taken .*--master_port {port + 1} "):
            _connect(0, 5.0)
