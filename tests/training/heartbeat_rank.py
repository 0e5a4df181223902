"""A rank that only sends heartbeats, in a separate process."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from multiprocessing.connection import Connection

from torch.distributed import PrefixStore, TCPStore

from slap_fast.training.distributed.heartbeat import Heartbeat, RendezvousError, rendezvous


def run_rank(port: int, rank: int, world_size: int, timeout: float, log: str, commands: Connection) -> None:
    """Sends "met" once all ranks have joined, then obeys `commands`; stderr goes to `log`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    minute = timedelta(seconds=60)
    shared = TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=minute, wait_for_workers=False, multi_tenant=True)
    try:
        store, ranks = rendezvous(shared, rank, world_size, timeout)
    except RendezvousError as error:
        commands.send(str(error))
        return
    heartbeat = Heartbeat(store, ranks, rank, timeout)
    heartbeat.set_activity("in step 7")
    heartbeat.start()
    # After the second own beat, the beat of the other rank has been read.
    beats = PrefixStore("heartbeat", store)
    while world_size > 1 and json.loads(beats.get(str(rank)))["turn"] < 2:
        time.sleep(0.01)
    commands.send("met")
    if commands.recv() == "report":
        heartbeat.report_missing_ranks()
    heartbeat.stop()
    commands.send("left")
    # The store of rank 0 ends with its process.
    commands.recv()
