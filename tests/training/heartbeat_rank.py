"""A rank that does nothing but live, in a process of its own."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from multiprocessing.connection import Connection

from torch.distributed import PrefixStore, TCPStore

from slap_fast.training.distributed.heartbeat import Heartbeat, RendezvousError, meet


def live(port: int, rank: int, world_size: int, timeout: float, log: str, orders: Connection) -> None:
    """Says so once all have met, then does as told; what it says to its user goes to `log`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    minute = timedelta(seconds=60)
    shared = TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=minute, wait_for_workers=False, multi_tenant=True)
    try:
        store, ranks = meet(shared, rank, world_size, timeout)
    except RendezvousError as error:
        orders.send(str(error))
        return
    heartbeat = Heartbeat(store, ranks, rank, timeout)
    heartbeat.doing("in step 7")
    heartbeat.start()
    # Two beats of its own: after the first it has heard the other.
    beats = PrefixStore("heartbeat", store)
    while world_size > 1 and json.loads(beats.get(str(rank)))["turn"] < 2:
        time.sleep(0.01)
    orders.send("met")
    if orders.recv() == "report":
        heartbeat.report()
    heartbeat.stop()
    orders.send("left")
    # The store of rank 0 lives as long as it does.
    orders.recv()
